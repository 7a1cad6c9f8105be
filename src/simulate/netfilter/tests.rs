//! Tests of whole hooks.
