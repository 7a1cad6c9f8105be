//! The only "maybe" in a snapshot.

use serde::{Deserialize, Serialize};

/// Part of what a kernel holds: read, not asked for, or refused.
///
/// An empty dump is `Known` of nothing. That is not the same as [`Section::Missing`]: a decision that
/// needs a missing section is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Section<T> {
    /// Nobody asked yet. Asking may make it known.
    #[default]
    NotAsked,
    /// It was read, whole.
    Known(T),
    /// It was asked for and can't be had; the reason names operation and cause.
    Missing(String),
}

impl<T> Section<T> {
    /// The value where it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            _ => None,
        }
    }

    /// The value where it is known, to change it.
    pub fn known_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Known(value) => Some(value),
            _ => None,
        }
    }

    /// Why it can't be had, where that is so.
    pub fn missing(&self) -> Option<&str> {
        match self {
            Self::Missing(why) => Some(why),
            _ => None,
        }
    }

    /// Whether nobody asked yet.
    pub fn is_not_asked(&self) -> bool {
        matches!(self, Self::NotAsked)
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Section<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Missing(error.to_string()),
        }
    }
}
