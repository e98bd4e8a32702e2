//! Each kind of sealed value decrypts in its own context under its own key, and nowhere else.

use super::*;
use crate::domain::{ClientAuthentication, ClientCertificate, OAuthClient, Position, Timestamp};

const OLD: [u8; KEY_BYTES] = [7; KEY_BYTES];
const NEW: [u8; KEY_BYTES] = [8; KEY_BYTES];

fn nonce() -> [u8; NONCE_BYTES] {
    [3; NONCE_BYTES]
}

/// An endpoint with plain values.
fn endpoint() -> Endpoint {
    let plain = |text: &str| Sealed::Plain(text.as_bytes().into());
    let secret = |text, expires_at| Secret { kind: SecretKind::Hmac, key: plain(text), expires_at };
    Endpoint {
        id: "ep_1".parse().unwrap(),
        url: "https://one.example/hook".into(),
        revision: Position(7),
        secrets: vec![secret("current", None), secret("previous", Some(Timestamp::from_millis(9)))],
        sensitive_headers: vec![("x-one".into(), plain("header one")), ("x-two".into(), plain("header two"))],
        client_certificate: Some(ClientCertificate {
            chain: Vec::new(),
            key: plain("client key"),
            subject: "".into(),
            expires_at: Timestamp::default(),
        }),
        auth: Some(EndpointAuth::OAuth2(OAuthClient {
            token_url: "https://token.example/".into(),
            id: "client".into(),
            secret: plain("client secret"),
            scope: None,
            audience: None,
            resource: None,
            authentication: ClientAuthentication::Basic,
            parameters: Vec::new(),
        })),
        ..crate::rules::tests::endpoint(1, "acme", &[])
    }
}

fn sealed(vault: &Vault) -> Endpoint {
    let mut endpoint = endpoint();
    vault.seal_endpoint(&mut endpoint, &mut nonce);
    endpoint
}

/// Seals in the layout of version 1.
fn sealed_v1(key: &[u8; KEY_BYTES], plain: &[u8], context: SealContext<'_>) -> Sealed {
    let payload = Payload { msg: plain, aad: &context.associated_data(BOUND_TO_ID) };
    let ciphertext = XChaCha20Poly1305::new(key.into()).encrypt(&XNonce::from(nonce()), payload).unwrap();
    Sealed::Encrypted([&[BOUND_TO_ID], &VaultKeyId::of(key).0[..], &nonce(), &ciphertext].concat().into())
}

/// Replaces one value of an endpoint.
fn with(endpoint: &Endpoint, index: usize, value: Sealed) -> Endpoint {
    let mut endpoint = endpoint.clone();
    *sealed_values_mut(&mut endpoint).nth(index).unwrap() = value;
    endpoint
}

const KINDS: [&str; 6] = ["current", "previous", "header one", "header two", "client key", "client secret"];

#[test]
fn every_kind_of_value_is_encrypted_and_decrypted() {
    let vault = Vault::new([&OLD]);
    let mut endpoint = sealed(&vault);
    assert_eq!(values(&endpoint).count(), KINDS.len());
    for ((field, value), text) in values(&endpoint).zip(KINDS) {
        let Sealed::Encrypted(bytes) = value else { panic!("{text} is plain") };
        assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        assert_eq!(vault.open(value, SealContext::Endpoint(&endpoint, field)), Ok(text.as_bytes().to_vec()));
        assert!(vault.is_current(value));
    }
    let current = endpoint.clone();
    vault.open_endpoint(&mut endpoint, &current).unwrap();
    assert_eq!(endpoint, self::endpoint());
}

#[test]
fn check_rejects_each_kind_of_value_under_another_key() {
    let (old, new) = (Vault::new([&OLD]), Vault::new([&NEW]));
    let under_old = sealed(&old);
    for (index, kind) in KINDS.iter().enumerate() {
        // The other values decrypt: they are plain, or under the other key.
        let value = values(&under_old).nth(index).unwrap().1.clone();
        for others in [endpoint(), sealed(&new)] {
            let mixed = with(&others, index, value.clone());
            let missing = VaultError::OtherKey(VaultKeyId::of(&OLD));
            assert_eq!(new.check(&mixed), Err(missing), "{kind}");
            assert_eq!(Vault::new([&NEW, &OLD]).check(&mixed), Ok(()), "{kind}");
        }
        let alone = with(&endpoint(), index, value);
        let missing = VaultError::NoKey(VaultKeyId::of(&OLD));
        assert_eq!(Vault::new([]).check(&alone), Err(missing), "{kind}");
    }
}

#[test]
fn check_rejects_each_kind_of_value_in_another_context() {
    let vault = Vault::new([&OLD]);
    let before = sealed(&vault);
    vault.check(&before).unwrap();
    type Change = fn(&mut Endpoint);
    let changes: [(&str, Change); 4] = [
        ("URL", |endpoint| endpoint.url = "https://two.example/hook".into()),
        ("revision", |endpoint| endpoint.revision = Position(8)),
        ("tenant", |endpoint| endpoint.tenant = "other".parse().unwrap()),
        ("id", |endpoint| endpoint.id = "ep_2".parse().unwrap()),
    ];
    for (what, change) in changes {
        let mut after = endpoint();
        change(&mut after);
        for (index, kind) in KINDS.iter().enumerate() {
            let value = values(&before).nth(index).unwrap().1.clone();
            let moved = with(&after, index, value);
            assert_eq!(vault.check(&moved), Err(VaultError::Damaged), "{kind} at another {what}");
        }
    }
}

#[test]
fn values_do_not_decrypt_as_another_field() {
    let vault = Vault::new([&OLD]);
    let endpoint = sealed(&vault);
    for (from, kind) in KINDS.iter().enumerate() {
        for (to, other) in KINDS.iter().enumerate().filter(|(to, _)| *to != from) {
            let value = values(&endpoint).nth(from).unwrap().1.clone();
            let moved = with(&endpoint, to, value);
            assert_eq!(vault.check(&moved), Err(VaultError::Damaged), "{kind} as {other}");
        }
    }
    let mut longer = endpoint.clone();
    longer.secrets[1].expires_at = Some(Timestamp::from_millis(10));
    assert_eq!(vault.check(&longer), Err(VaultError::Damaged), "an extended expiry of a rotated secret");
    let mut other = endpoint;
    other.secrets[0].kind = SecretKind::Ed25519;
    assert_eq!(vault.check(&other), Err(VaultError::Damaged), "a changed key type");
}

#[test]
fn version_1_values_decrypt_and_are_resealed_as_version_2() {
    let vault = Vault::new([&OLD]);
    let plain = endpoint();
    for (index, (field, value)) in values(&plain).enumerate() {
        let Sealed::Plain(text) = value else { unreachable!("all values are plain") };
        let context = SealContext::Endpoint(&plain, field);
        let before = with(&plain, index, sealed_v1(&OLD, text, context));
        let value = values(&before).nth(index).unwrap().1;
        assert_eq!(vault.check(&before), Ok(()), "{}", KINDS[index]);
        assert!(!vault.is_current(value), "{}", KINDS[index]);
        let mut elsewhere = before.clone();
        elsewhere.id = "ep_2".parse().unwrap();
        assert_eq!(vault.check(&elsewhere), Err(VaultError::Damaged), "{}", KINDS[index]);
        let mut changed = before.clone();
        vault.open_endpoint(&mut changed, &before).unwrap();
        assert_eq!(changed, plain);
        vault.seal_endpoint(&mut changed, &mut nonce);
        assert!(values(&changed).all(|(_, value)| vault.is_current(value)));
    }
}

#[test]
fn changed_endpoint_is_resealed_for_its_new_url_and_revision() {
    let (before, vault) = (sealed(&Vault::new([&OLD])), Vault::new([&NEW, &OLD]));
    let mut changed = before.clone();
    changed.url = "https://two.example/hook".into();
    changed.secrets[0].expires_at = Some(Timestamp::from_millis(5));
    changed.secrets.swap(0, 1);
    vault.open_endpoint(&mut changed, &before).unwrap();
    changed.revision = Position(8);
    vault.seal_endpoint(&mut changed, &mut nonce);
    assert_eq!(vault.check(&changed), Ok(()));
    assert_eq!(Vault::new([&NEW]).check(&changed), Ok(()), "the older key is still needed");
    let mut foreign = with(&changed, 0, values(&before).next().unwrap().1.clone());
    assert_eq!(vault.open_endpoint(&mut foreign, &changed), Err(VaultError::Damaged));
}

#[test]
fn first_key_encrypts_and_every_key_decrypts() {
    let (old, both, new) = (Vault::new([&OLD]), Vault::new([&NEW, &OLD]), Vault::new([&NEW]));
    let scope = [1; 16];
    let answer = SealContext::StoredResponse(&scope);
    let (before, after) = (old.seal(b"answer", answer, nonce()), both.seal(b"answer", answer, nonce()));
    assert_eq!(both.open(&before, answer), Ok(b"answer".to_vec()));
    assert_eq!(new.open(&after, answer), Ok(b"answer".to_vec()));
    assert_eq!(new.open(&before, answer), Err(VaultError::OtherKey(VaultKeyId::of(&OLD))));
    assert_eq!(old.open(&after, answer), Err(VaultError::OtherKey(VaultKeyId::of(&NEW))));
    assert_eq!(both.open(&after, SealContext::StoredResponse(&[2; 16])), Err(VaultError::Damaged));
    assert!(both.is_current(&after) && !both.is_current(&before));
    assert_eq!(both.open(&sealed_v1(&OLD, b"answer", answer), answer), Ok(b"answer".to_vec()));
}

#[test]
fn changed_or_truncated_bytes_do_not_decrypt() {
    let vault = Vault::new([&OLD]);
    let scope = [1; 16];
    let Sealed::Encrypted(bytes) = vault.seal(b"a secret", SealContext::StoredResponse(&scope), nonce())
    else {
        panic!("not encrypted")
    };
    let open =
        |bytes: Vec<u8>| vault.open(&Sealed::Encrypted(bytes.into()), SealContext::StoredResponse(&scope));
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 3;
        assert!(open(changed).is_err(), "byte {at}");
        assert!(open(bytes[..at].to_vec()).is_err(), "cut at {at}");
    }
}

#[test]
fn plain_values_without_a_key_open_after_a_key_is_added() {
    let none = Vault::new([]);
    let plain = sealed(&none);
    assert_eq!(plain, endpoint());
    assert!(values(&plain).all(|(_, value)| none.is_current(value)));
    let later = Vault::new([&OLD]);
    assert_eq!(later.check(&plain), Ok(()));
    assert!(values(&plain).all(|(_, value)| !later.is_current(value)));
}

#[test]
fn debug_shows_no_value() {
    let plain = Sealed::Plain((*b"visible").into());
    assert_eq!(format!("{plain:?}"), "Sealed(..)");
}
