//! The station page: what a ward looks at all night. Its files are built from `daemon/station` and embedded, so that the
//! box needs nothing from outside; the page itself speaks MQTT over websockets with the broker, never with this server.
//!
//! - [`pages`] (pure): a request becomes a response; every header that keeps a page honest.
//! - [`server`]: the HTTPS listener and its limits.
//! - [`reducer`] (pure): what a receiver does with an alert document; one behaviour with the page by shared vectors.
//!
//! Deliberately absent: any way to change the daemon from here. The page holds no secret, and this server reads no body.

pub mod pages;
pub mod reducer;
pub mod server;
