//! Why a fact can't be had.

use std::io;

/// A read that did not succeed. One line says operation, object, cause and, where there is one, the
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused (NLMSG_ERROR or errno).
    #[error("{operation}: {}{}", name(*errno), remedy(*errno))]
    Errno {
        /// Operation and object.
        operation: String,
        /// Positive errno.
        errno: i32,
    },
    /// The answer is not what this program can read.
    #[error("{operation}: {what}")]
    Malformed {
        /// Operation and object.
        operation: String,
        /// What is wrong with it.
        what: String,
    },
    /// It was there a moment ago.
    #[error("{operation}: it ended while it was looked at")]
    Gone {
        /// Operation and object.
        operation: String,
    },
    /// It changed under each of several attempts.
    #[error("{operation}: it kept changing while it was read; try again")]
    Changing {
        /// Operation and object.
        operation: String,
    },
    /// No answer in time.
    #[error("{operation}: no answer within the time allowed; try again, or ask for less at a time")]
    Timeout {
        /// Operation and object.
        operation: String,
    },
    /// More than is read at a time; reading stopped there.
    #[error("{operation}: it has more than {most} entries, which is where reading stops; {remedy}")]
    TooMany {
        /// Operation and object.
        operation: String,
        /// Most entries that are read.
        most: usize,
        /// What can be done instead.
        remedy: &'static str,
    },
    /// A message that is not a plain get or dump: never sent.
    #[error("{operation}: message type {kind:#x} is not a read, refused to send it")]
    NotARead {
        /// Operation and object.
        operation: String,
        /// `nlmsg_type`.
        kind: u16,
    },
    /// The kernel module that would answer is not loaded, and asking would load it.
    #[error(
        "{operation}: kernel module {module} is not loaded, and netpath loads none; load it on the node (modprobe {module})"
    )]
    Module {
        /// Operation and object.
        operation: String,
        /// Name for modprobe.
        module: &'static str,
    },
    /// Asking might make the kernel load a module, and whether it would can't be told.
    #[error(
        "{operation}: whether kernel module {module} is there can't be told, and asking might load it ({why}); load it on the node (modprobe {module}), or let the helper read that file"
    )]
    Unasked {
        /// Operation and object.
        operation: String,
        /// Name for modprobe.
        module: &'static str,
        /// Why that can't be told.
        why: String,
    },
}

impl Error {
    /// From an I/O error.
    pub fn io(operation: impl Into<String>, error: &io::Error) -> Self {
        let operation = operation.into();
        match error.raw_os_error() {
            Some(errno) => Self::Errno { operation, errno },
            None if error.kind() == io::ErrorKind::TimedOut => Self::Timeout { operation },
            None => Self::Malformed {
                operation,
                what: error.to_string(),
            },
        }
    }

    /// From a `nix` call.
    pub fn nix(operation: impl Into<String>, errno: nix::Error) -> Self {
        Self::Errno {
            operation: operation.into(),
            errno: errno as i32,
        }
    }

    /// For an answer that can't be read.
    pub fn malformed(operation: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed {
            operation: operation.into(),
            what: what.into(),
        }
    }

    /// The errno, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn name(errno: i32) -> String {
    let known = nix::Error::from_raw(errno);
    if known == nix::Error::UnknownErrno {
        format!("errno {errno}")
    } else {
        format!("{known:?} ({})", known.desc())
    }
}

fn remedy(errno: i32) -> String {
    match errno {
        libc::EPERM | libc::EACCES => not_permitted(),
        libc::EMFILE | libc::ENFILE => {
            "; raise the limit of open files, or ask for fewer pods".to_owned()
        }
        libc::ENOBUFS | libc::ENOMEM => "; the node is short of memory, try again".to_owned(),
        _ => String::new(),
    }
}

/// Why something was not permitted, as a remedy behind an error.
pub(super) fn not_permitted() -> String {
    not_permitted_with(super::privileges::lacking().as_deref())
}

fn not_permitted_with(lacking: Option<&[&str]>) -> String {
    match lacking {
        Some([]) => "; the helper has the capabilities that this takes, so that a security module or the node's user namespace is in its way".to_owned(),
        Some(lacking) => format!("; the helper lacks {}", lacking.join(", ")),
        None => "; the helper lacks a capability, or a security module or the node's user namespace is in its way".to_owned(),
    }
}

/// Result of a read.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_operation_cause_and_remedy() {
        let error = Error::Errno {
            operation: "list nf_tables tables in net:[4026532621]".to_owned(),
            errno: libc::EPERM,
        };
        let text = error.to_string();
        assert!(
            text.starts_with(
                "list nf_tables tables in net:[4026532621]: EPERM (Operation not permitted); the helper "
            ),
            "{text}"
        );
    }

    #[test]
    fn capabilities_that_could_not_be_read_are_not_claimed() {
        let lacking = not_permitted_with(Some(&["CAP_NET_RAW"]));
        assert_eq!(lacking, "; the helper lacks CAP_NET_RAW");
        assert!(not_permitted_with(Some(&[])).contains("the helper has the capabilities"));
        let unknown = not_permitted_with(None);
        assert!(
            unknown.starts_with("; the helper lacks a capability, or "),
            "{unknown}"
        );
    }
}
