//! The wiring: the only file that knows every stage. Stub.
