//! Golden bytes of parts of records.

use super::*;

/// As in `golden.txt`: these bytes never change.
#[test]
fn golden_bytes_of_a_handshake() {
    let consented = Handshake {
        consent: Some(Consent { at: time(8), rate: Some(9) }),
        callbacks: Vec::new(),
        ..pending_handshake()
    };
    let origin = "126576656e74732e6578616d706c652e636f6d";
    let asked = "0101ac020225737461747573203430353a206e6f20576562486f6f6b2d416c6c6f7765642d4f726967696ef403";
    let hashes = format!("02{}{}", "06".repeat(32), "07".repeat(32));
    for (handshake, golden) in [
        (pending_handshake(), format!("{origin}01780100{asked}{hashes}")),
        (consented, format!("{origin}01780101080109{asked}00")),
        (Handshake::new("a".parse().unwrap(), None, false), "01610000000000".to_owned()),
    ] {
        let mut bytes = Vec::new();
        put_handshake(&mut bytes, &handshake);
        assert_eq!(hex(&bytes), golden);
        assert_eq!(get_handshake(&mut Reader::new(&unhex(&golden))), Ok(handshake));
    }
}

/// As in `golden.txt`: these bytes never change.
#[test]
fn golden_bytes_of_a_hold() {
    let bytes = encoded(&Record::AttemptFinished {
        delivery: DeliveryKey { event: Position(300), endpoint: EndpointNumber(2) },
        due: time(400),
        attempt: Arc::new(held_attempt()),
    });
    // Retried at 99, held until 7000 by revision 12, after 86400123 ms, 300 ms late. No exchange.
    let golden = "026301d8360c01fbb89929ac020000";
    assert!(hex(&bytes).ends_with(golden), "{}", hex(&bytes));
}

/// As in `golden.txt`: these bytes never change.
#[test]
fn golden_bytes_of_an_erased_event() {
    let golden = "0102056576745f310764656661756c740a6f726465722e7061696403312e3080d095ffbc3181d095ffbc310108\
        6f726465722d343207010a637573746f6d6572203901ac0200010b7472616365706172656e740530302d616200\
        0201ffffffff0f02010101010101010101010101010101010202020202020202020202020202020201ffb7ff90\
        fdce39030303030303030303030303030303030404040404040404040404040404040400e807";
    let erased = Record::EventAccepted(Arc::new(full_event().erased(time(1_000))));
    assert_eq!(hex(&encoded(&erased)), golden);
    assert_eq!(decode(&unhex(golden)), Ok(erased));
}

/// As in `golden.txt`: these bytes never change.
#[test]
fn golden_bytes_of_lost_answers() {
    let golden = unhex("17020402ac02ae020500ad02ae020501a846e80700");
    assert_eq!(hex(&encoded(&lost_answers())), hex(&golden));
    assert_eq!(decode(&golden), Ok(lost_answers()));
    let early = [&[23, 1], &golden[2..]].concat();
    assert_eq!(decode(&early), Err(CodecError::UnknownValue { what: "end of a lease", found: 5 }));
    let without = encoded(&Record::LeasesEnded {
        queue: EndpointNumber(4),
        ends: Vec::new(),
        at: time(1_000),
        reason: None,
    });
    let without = [&[23, 2], &without[2..]].concat();
    assert!(decode(&without).is_err(), "layout 2 has a lost answer");
}
