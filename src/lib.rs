//! netpath
