//! Nothing here: see `tests/mock.rs`.
