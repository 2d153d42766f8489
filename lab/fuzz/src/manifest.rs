//! What a user writes.

use anyport_cli::manifest::Manifest;

/// A manifest is read, or its faults are named with a line that it has.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let manifest = Manifest::read("fuzz.yaml", text);
    // A carriage return ends a line as well (YAML 1.2.2, section 5.4).
    let lines = text.split(['\n', '\r']).count() as u64;
    for fault in manifest.faults() {
        assert!(!fault.problem.is_empty(), "a fault without words");
        assert!(
            fault.place.line <= lines,
            "line {} of {lines}",
            fault.place.line
        );
    }
}
