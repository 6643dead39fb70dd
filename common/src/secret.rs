//! Values that must not be printed, logged or left in memory.
//!
//! [`Secret`] has no `Display`, a `Debug` that shows nothing, and is zeroed on drop. Reading it is one visible word,
//! [`Secret::expose`], which reviewers can search for.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret of type `T` (a `String`, a `[u8; 32]`, a `Vec<u8>`).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the value into custody.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Do not let it reach a log, an error, an argument list or a database in clear.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "Secret(…)");
    }
}
