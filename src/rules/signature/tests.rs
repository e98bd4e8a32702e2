//! Tests of signatures: published vectors, strict verifiers, rejected secrets.

use super::*;
use crate::domain::{CustomSignature, Sealed, SignatureAlgorithm, SignatureEncoding};

const TV1_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const FRESH_SECRET: &str = "whsec_LcCoWsTOWM8lfW+T7NvImhfI5OkrhyYk";
const TV1_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TV1_SECONDS: u64 = 1_614_265_330;
const TV1_BODY: &[u8] = br#"{"test": 2432232314}"#;
const TV1: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
const TV3_KEY: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const TV3_PUBLIC: &str = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
const OTHER: &str = "Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";

/// Skips the check for published secrets: the vectors use some.
fn key(text: &str) -> SigningKey {
    SigningKey::parse_standard(text).unwrap()
}

fn secret(byte: u8, expires_at: Option<Timestamp>) -> Secret {
    Secret { kind: SecretKind::Hmac, key: Sealed::Plain([byte; 24].into()), expires_at }
}

fn hmac_key(byte: u8) -> SigningKey {
    SigningKey { kind: SecretKind::Hmac, bytes: vec![byte; 32] }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

fn verifies(header: &str) -> bool {
    verify(&key(TV1_SECRET).bytes, TV1_ID, &TV1_SECONDS.to_string(), TV1_BODY, header, at(TV1_SECONDS))
}

#[test]
fn test_vectors_1_and_2_match() {
    assert_eq!(key(TV1_SECRET).sign(TV1_ID, TV1_SECONDS, TV1_BODY), TV1);
    let tv2 = key("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").sign(
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1_649_367_553,
        br#"{"email":"test@example.com","username":"test_user"}"#,
    );
    assert_eq!(tv2, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=");
}

#[test]
fn test_vector_3_matches_from_seed_and_from_pair() {
    let expected =
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
    let pair = key(TV3_KEY);
    let seed = key(&format!("whsk_{}", STANDARD.encode(&pair.bytes)));
    for key in [&pair, &seed] {
        assert_eq!(key.sign(TV1_ID, TV1_SECONDS, TV1_BODY), expected);
        assert_eq!(key.public_text().as_deref(), Some(TV3_PUBLIC));
        assert_eq!(key.text(), TV3_KEY, "seed and public key are written");
    }
}

#[test]
fn test_vector_4_matches() {
    let body = br#"{"type":"contact.created","timestamp":"2022-11-03T20:26:10.344522Z","data":{"id":"1f81eb52-5198-4599-803e-771906343485"}}"#;
    let signature = key(TV3_KEY).sign("msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", 1_674_087_231, body);
    let expected =
        "v1a,LvaM/XV2eiveYbh3nDJB9CFU6SgUQsSFO7Nz5u3M+PUesso2vWw2zj6zoee2ijOae0RluTX9xaoEs9uSSJ/uDg==";
    assert_eq!(signature, expected);
}

#[test]
fn one_valid_signature_among_others_verifies() {
    assert!(verifies(&format!("v1,{OTHER} v2,{OTHER} {TV1} v1,{OTHER}")));
    assert!(verifies(&format!("v1a,{OTHER} {TV1}")));
}

#[test]
fn partial_signature_does_not_verify() {
    let folded = format!("v1,Ceo5,{TV1}");
    let other_version = TV1.replace("v1,", "v2,");
    for header in ["", "v1,", "v1", &TV1[..8], &TV1[3..], &other_version, &folded, &format!("v1,{OTHER}")] {
        assert!(!verifies(header), "{header:?}");
    }
}

#[test]
fn timestamps_are_plain_seconds_within_five_minutes() {
    let check = |text: &str, now| verify(&key(TV1_SECRET).bytes, TV1_ID, text, TV1_BODY, TV1, at(now));
    for (now, good) in [(300, true), (301, false)] {
        assert_eq!(check("1614265330", TV1_SECONDS + now), good, "{now} s late");
        assert_eq!(check("1614265330", TV1_SECONDS - now), good, "{now} s early");
    }
    for text in
        ["", "soon", "1614265330.5", "01614265330", "+1614265330", "-1", " 1614265330", "1614265330000"]
    {
        assert!(!check(text, TV1_SECONDS), "{text:?}");
    }
    assert!(!verify(&key(TV1_SECRET).bytes, TV1_ID, "1614265330", b"{}", TV1, at(TV1_SECONDS)));
    assert!(!verify(&key(TV1_SECRET).bytes, "other", "1614265330", TV1_BODY, TV1, at(TV1_SECONDS)));
}

/// With two spaces Python answers 500. C# rejects a header with a bare element. Several verifiers
/// read only the first header line.
#[test]
fn header_has_single_spaces_and_whole_elements() {
    for count in 1..=limits::SECRETS_MAX {
        let mut keys: Vec<_> = (0..count).map(|n| hmac_key(n as u8)).collect();
        keys.push(key(TV3_KEY));
        let (name, header) =
            signature_header(SignaturePreset::Standard, &keys, at(TV1_SECONDS), TV1_ID, TV1_BODY);
        assert_eq!((name, header.trim()), ("webhook-signature", header.as_str()));
        assert!(!header.contains("  ") && !header.contains(", "), "{header}");
        let elements: Vec<_> = header.split(' ').collect();
        assert_eq!(elements.len(), count + 1);
        for (key, element) in keys.iter().zip(elements) {
            let (version, encoded) = element.split_once(',').unwrap();
            let expected = if key.kind == SecretKind::Ed25519 { ("v1a", 64) } else { ("v1", 32) };
            assert_eq!((version, STANDARD.decode(encoded).unwrap().len()), expected, "{header}");
        }
    }
}

/// JavaScript, Go, Java and Rust require the standard alphabet with padding.
#[test]
fn secrets_are_padded_base64_of_the_standard_alphabet() {
    for length in limits::SECRET_BYTES_MIN..=limits::SECRET_BYTES_MAX {
        let bytes = (0..length).map(|at| 0xfb ^ (at * at) as u8).collect();
        let made = SigningKey { kind: SecretKind::Hmac, bytes };
        let text = made.text();
        assert_eq!((text.len() - HMAC_PREFIX.len()) % 4, 0, "{text}");
        assert!(!text[HMAC_PREFIX.len()..].contains(['-', '_']), "{text}");
        assert_eq!(key(&text), made);
    }
}

#[test]
fn signed_time_is_whole_seconds_of_the_attempt() {
    for millis in [0, 1, 999] {
        let now = Timestamp::from_millis(TV1_SECONDS * 1_000 + millis);
        let (_, header) =
            signature_header(SignaturePreset::Standard, &[key(TV1_SECRET)], now, TV1_ID, TV1_BODY);
        assert_eq!(header, TV1);
    }
}

#[test]
fn malformed_secret_is_rejected_without_echoing_it() {
    let of = |length: usize| SigningKey { kind: SecretKind::Hmac, bytes: vec![0xfb; length] }.text();
    let zero_key = ed25519_dalek::SigningKey::from_bytes(&[0; 32]).verifying_key();
    let pair = STANDARD.decode(&TV3_KEY[5..]).unwrap();
    let mut halves = pair.clone();
    halves[63] ^= 1;
    let whsk = |bytes: &[u8]| format!("whsk_{}", STANDARD.encode(bytes));
    for (text, error) in [
        (of(23), SecretError::Length(23)),
        (of(65), SecretError::Length(65)),
        ("whsec_".to_owned(), SecretError::Length(0)),
        (of(24)[6..].to_owned(), SecretError::Prefix),
        (String::new(), SecretError::Prefix),
        ("WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), SecretError::Prefix),
        (of(25).replace('=', ""), SecretError::Base64),
        (of(24).replace('+', "-").replace('/', "_"), SecretError::Base64),
        (format!("{} ", of(24)), SecretError::Base64),
        ("whsec_!!".to_owned(), SecretError::Base64),
        (TV3_PUBLIC.to_owned(), SecretError::PublicKey),
        (whsk(&pair[..31]), SecretError::KeyLength(31)),
        (whsk(&pair[..33]), SecretError::KeyLength(33)),
        (whsk(&halves), SecretError::KeyHalves),
        ("whsk_???".to_owned(), SecretError::Base64),
        (of(24), SecretError::Guessable),
        (format!("whsec_{}", STANDARD.encode([0; 64])), SecretError::Guessable),
        (format!("whsec_{}", STANDARD.encode("password-password-password")), SecretError::Guessable),
        (whsk(&[0; 32]), SecretError::Guessable),
        (whsk(&[&[0; 32][..], &zero_key.to_bytes()].concat()), SecretError::Guessable),
    ] {
        let refused = SigningKey::parse(&text, SignaturePreset::Standard).unwrap_err();
        assert_eq!(refused, error, "{text}");
        assert!(text.len() < 8 || !refused.to_string().contains(&text), "{text}");
    }
    assert_eq!(format!("{:?}", key(TV3_KEY)), "SigningKey(Ed25519, ..)");
}

#[test]
fn other_presets_accept_text_secrets() {
    for preset in [SignaturePreset::Stripe, SignaturePreset::Github] {
        let long: String =
            (0..255_usize).map(|at| char::from(b'!' + ((at * at + at / 89 * 7) % 89) as u8)).collect();
        for text in ["whsec_abc123DEF456", "It's no Secret to My Cat 42", FRESH_SECRET, &long] {
            assert_eq!(SigningKey::parse(text, preset).unwrap().text(), text);
        }
        for text in [
            "",
            "9f86d081884c7d6",
            " padded-9f86d081884 ",
            "käse-sahne-9f86d081",
            "two\nlines-9f86d081",
            &"x".repeat(256),
        ] {
            assert_eq!(SigningKey::parse(text, preset), Err(SecretError::Text), "{text:?}");
        }
        for text in [
            "passwordpassword",
            "aaaaaaaaaaaaaaaa",
            "my-webhook-secret",
            "It's a Secret to Everybody",
            TV1_SECRET,
        ] {
            assert_eq!(SigningKey::parse(text, preset), Err(SecretError::Guessable), "{text:?}");
        }
        assert_eq!(SigningKey::parse(TV3_KEY, preset), Err(SecretError::NotSymmetric));
        let text = SigningKey::parse("It's no Secret to My Cat 42", preset).unwrap();
        assert_eq!(text.check(SignaturePreset::Standard), Err(SecretError::Prefix));
    }
}

/// The example of GitHub's documentation ("Testing the webhook payload validation").
#[test]
fn github_test_vector_matches() {
    let published = SigningKey::parse_text("It's a Secret to Everybody").unwrap();
    let header = signature_header(SignaturePreset::Github, &[published], at(1), "x", b"Hello, World!");
    let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(header, ("x-hub-signature-256", expected.to_owned()));
}

#[test]
fn stripe_header_has_the_time_and_one_signature_per_key() {
    let keys = ["whsec_9f86d081884c", "whsec_another_7d659a2f"]
        .map(|text| SigningKey::parse(text, SignaturePreset::Stripe).unwrap());
    let (name, value) = signature_header(SignaturePreset::Stripe, &keys, at(1_700_000_000), "x", b"{}");
    let parts: Vec<_> = value.split(',').collect();
    assert_eq!((name, parts[0], parts.len()), ("stripe-signature", "t=1700000000", 3));
    let expected = hex(hmac(b"whsec_9f86d081884c", &[b"1700000000.{}"]).as_ref());
    assert_eq!(parts[1], format!("v1={expected}"));
}

/// The current key is first. GitHub's header holds only its signature.
#[test]
fn each_preset_signs_with_live_keys_in_order() {
    let keys = [hmac_key(1), hmac_key(2), hmac_key(3)];
    let header =
        |preset, keys: &[SigningKey]| signature_header(preset, keys, at(TV1_SECONDS), TV1_ID, TV1_BODY);
    let alone = |preset| keys.each_ref().map(|key| header(preset, std::slice::from_ref(key)).1);
    assert_eq!(header(SignaturePreset::Standard, &keys).1, alone(SignaturePreset::Standard).join(" "));
    let [first, second, third] = alone(SignaturePreset::Github);
    assert!(first != second && second != third && third != first);
    assert_eq!(header(SignaturePreset::Github, &keys), ("x-hub-signature-256", first));
    let stripe = alone(SignaturePreset::Stripe);
    let start = format!("t={TV1_SECONDS}");
    let signatures = stripe.each_ref().map(|header| header.strip_prefix(&*start).unwrap());
    assert_eq!(header(SignaturePreset::Stripe, &keys).1, format!("{start}{}", signatures.concat()));
    // The receiver's own computation, with the text of the secret.
    let mac = |key: &SigningKey, signed: &[u8]| hex(hmac(key.text().as_bytes(), &[signed]).as_ref());
    assert_eq!(header(SignaturePreset::Github, &keys).1, format!("sha256={}", mac(&keys[0], TV1_BODY)));
    let signed = [format!("{TV1_SECONDS}.").as_bytes(), TV1_BODY].concat();
    for (signature, key) in signatures.into_iter().zip(&keys) {
        assert_eq!(signature, format!(",v1={}", mac(key, &signed)));
    }
}

#[test]
fn rotations_put_the_newest_secret_first() {
    let (now, hour) = (at(1_000), Duration::from_secs(3_600));
    let mut secrets = vec![secret(1, None)];
    for byte in 2..=4 {
        secrets = rotate(&secrets, secret(byte, None), |_| false, hour, now).unwrap();
        assert_eq!(secrets.len(), byte as usize);
        assert_eq!((&secrets[0].key, secrets[0].expires_at), (&secret(byte, None).key, None));
        assert_eq!(secrets[1].key, secret(byte - 1, None).key, "then the previous one");
        assert!(secrets[1..].iter().all(|old| old.expires_at == Some(now.plus(hour))));
    }
    // Rotating back to a live secret makes it the current one, without expiry or duplicate.
    let is_first = |old: &Secret| old.key == secret(1, None).key;
    let back = rotate(&secrets, secret(1, None), is_first, hour, now).unwrap();
    assert_eq!(back.len(), 4);
    assert_eq!(back.iter().filter(|secret| is_first(secret)).count(), 1);
    assert_eq!(back[0].expires_at, None);
    // Without an overlap only the new secret is live.
    assert_eq!(rotate(&back, secret(9, None), |_| false, Duration::ZERO, now).unwrap().len(), 1);
}

#[test]
fn overlap_ends_never_grows_and_is_bounded() {
    let now = at(1_000);
    let second = Duration::from_secs(1);
    let old = [secret(1, None), secret(2, Some(now.plus(5 * second))), secret(3, Some(now))];
    let rotated = rotate(&old, secret(4, None), |_| false, 10 * second, now).unwrap();
    let expected =
        [secret(4, None), secret(1, Some(now.plus(10 * second))), secret(2, Some(now.plus(5 * second)))];
    assert_eq!(rotated, expected, "an expired secret is dropped");
    assert!(is_live(&rotated[1], now.plus(9 * second)) && !is_live(&rotated[1], now.plus(10 * second)));
    let at_once = rotate(&rotated, secret(5, None), |_| false, Duration::ZERO, now).unwrap();
    assert_eq!(at_once, [secret(5, None)]);
    let back = rotate(&rotated, secret(1, None), |old| old.key == secret(1, None).key, second, now).unwrap();
    assert_eq!(back.len(), 3, "no secret is duplicated");
    let mut many = vec![secret(0, None)];
    for byte in 1..limits::SECRETS_MAX {
        many = rotate(&many, secret(byte as u8, None), |_| false, second, now).unwrap();
    }
    assert_eq!(rotate(&many, secret(99, None), |_| false, second, now), Err(SecretError::TooMany));
}

#[test]
fn signatures_agree_with_the_reference_library() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let keys = [hmac_key(9), key(TV1_SECRET), key(TV3_KEY)];
    let body = br#"{"type":"order.paid","data":{"orderId":42}}"#;
    let (_, header) = signature_header(SignaturePreset::Standard, &keys, at(now), "evt_1", body);
    let mut headers = axum::http::HeaderMap::new();
    headers.insert("webhook-id", "evt_1".parse().unwrap());
    headers.insert("webhook-timestamp", now.into());
    headers.insert("webhook-signature", header.parse().unwrap());
    for key in &keys[..2] {
        let webhook = standardwebhooks::Webhook::new(&key.text()).unwrap();
        webhook.verify(body, &headers).unwrap();
        webhook.verify(b"{}", &headers).unwrap_err();
        let theirs = webhook.sign("evt_1", i64::try_from(now).unwrap(), body).unwrap();
        assert!(verify(&key.bytes, "evt_1", &now.to_string(), body, &theirs, at(now)));
    }
}

fn custom(
    algorithm: SignatureAlgorithm,
    template: &str,
    value: &str,
    separator: Option<&str>,
) -> SignatureScheme {
    SignatureScheme::Custom(CustomSignature {
        header: "X-Acme-Signature".into(),
        algorithm,
        encoding: SignatureEncoding::Hex,
        template: template.into(),
        value: value.into(),
        separator: separator.map(Into::into),
    })
}

/// Expected values: `printf '%s' BODY | openssl dgst -sha1 -hmac KEY`, and so on.
#[test]
fn custom_signatures_equal_those_of_openssl() {
    let keys = ["It's a Secret to Everybody", "another-secret-text"]
        .map(|text| SigningKey::parse_text(text).unwrap());
    let sign = |scheme| {
        let headers = signature_headers(&[scheme], &keys, at(1_700_000_000), "evt_1", b"Hello, World!");
        let [(name, value)] = headers.try_into().unwrap();
        assert_eq!(name, "x-acme-signature");
        value
    };
    let plain = sign(custom(SignatureAlgorithm::Sha256, "{body}", "sha256={signature}", None));
    assert_eq!(plain, "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17");
    let sha1 = sign(custom(SignatureAlgorithm::Sha1, "{body}", "{signature}", None));
    assert_eq!(sha1, "01dc10d0c83e72ed246219cdd91669667fe2ca59");
    let sha512 = sign(custom(SignatureAlgorithm::Sha512, "{id}.{timestamp}.{body}!", "{signature}", None));
    assert_eq!(
        sha512,
        "4d05feb221ba07e97b291fbe7e67b58500740819b510cbe073ff4f8919dc8923a7054b807753e94c43e2358e5817e665c6540a84af240681bdac9111580631e4"
    );
    let both = sign(custom(SignatureAlgorithm::Sha256, "{body}", "t={timestamp} v={signature}", Some(", ")));
    let parts: Vec<_> = both.split(", ").collect();
    assert!(parts.len() == 2 && parts[0] == plain.replace("sha256=", "t=1700000000 v="), "{both}");
}

#[test]
fn svix_sends_the_standard_signature_under_its_names() {
    let keys = [hmac_key(1), hmac_key(2)];
    let schemes = [SignaturePreset::Standard, SignaturePreset::Svix].map(SignatureScheme::Preset);
    let headers = signature_headers(&schemes, &keys, at(TV1_SECONDS), TV1_ID, TV1_BODY);
    let names: Vec<_> = headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["webhook-signature", "svix-id", "svix-timestamp", "svix-signature"]);
    assert_eq!(headers[0].1, headers[3].1);
    assert_eq!((&*headers[1].1, &*headers[2].1), (TV1_ID, &*TV1_SECONDS.to_string()));
}

#[test]
fn placeholders_of_custom_signatures_are_checked() {
    for good in ["{body}", "{id}.{timestamp}.{body}", "v0:{timestamp}:{body}"] {
        assert_eq!(check_content(good), Ok(()), "{good}");
    }
    let long = format!("{{body}}{}", "x".repeat(300));
    for bad in
        ["", "{id}", "{body}{body}", "{body}{secret}", "{body", "{body}}", "{body}\n", " {body}", &long]
    {
        assert!(check_content(bad).is_err(), "{bad:?}");
    }
    for bad in
        ["", "{body}", "{signature}{signature}", "{signature}{", "{signature}\r\nX-A: b", "é{signature}"]
    {
        assert!(check_value(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn key_must_suit_all_schemes() {
    let schemes = |presets: &[SignaturePreset]| -> Vec<_> {
        presets.iter().copied().map(SignatureScheme::Preset).collect()
    };
    let (standard, github) = (schemes(&[SignaturePreset::Standard]), schemes(&[SignaturePreset::Github]));
    let mixed = schemes(&[SignaturePreset::Github, SignaturePreset::Standard]);
    let text = "It's no Secret to My Cat 42";
    assert!(SigningKey::parse_for(text, &github).is_ok());
    assert_eq!(SigningKey::parse_for(text, &mixed), Err(SecretError::Prefix));
    assert_eq!(SigningKey::parse_for(TV3_KEY, &mixed), Err(SecretError::NotSymmetric));
    let own = custom(SignatureAlgorithm::Sha256, "{body}", "{signature}", None);
    assert_eq!(SigningKey::parse_for(TV3_KEY, &[own]), Err(SecretError::NotSymmetric));
    assert!(SigningKey::parse_for(FRESH_SECRET, &mixed).is_ok());
    assert_eq!(SigningKey::parse_for(FRESH_SECRET, &standard).unwrap().text(), FRESH_SECRET);
}
