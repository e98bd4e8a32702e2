//! What needs no socket; the rest is in `tests/receivers` and `tests/egress`.

use super::*;

#[test]
fn words_about_a_failure_have_a_bound() {
    let long = "é".repeat(limits::ERROR_BYTES_MAX);
    let words = Reply::failed(ErrorClass::Tls, long.clone()).outcome.unwrap_err().1;
    assert_eq!(words, long[..limits::ERROR_BYTES_MAX]);
    let words = Reply::failed(ErrorClass::Tls, format!("x{long}")).outcome.unwrap_err().1;
    assert_eq!(words.len(), limits::ERROR_BYTES_MAX - 1, "no half of a character");
    assert_eq!(Reply::failed(ErrorClass::Tls, "short".to_owned()).outcome.unwrap_err().1, "short");
}

#[test]
fn a_want_of_file_descriptors_is_found_behind_other_errors() {
    let io = std::io::Error::from_raw_os_error;
    assert!(is_exhausted(&std::io::Error::other(io(24))));
    assert!(is_exhausted(&io(23)));
    assert!(!is_exhausted(&std::io::Error::other(io(111))));
    assert!(!is_exhausted(&std::io::Error::other("nothing of the system's")));
}
