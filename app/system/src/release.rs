//! What an image of ours says of itself in `/etc/os-release`, which lies in the root filesystem that was signed.
//!
//! Elsewhere that file speaks of another system, and nothing in it is about us.

use serde::{Deserialize, Serialize};

/// A field of an image of ours; `None` where it is not there, or the file is another system's.
#[must_use]
pub fn field<'a>(os_release: &'a str, key: &str) -> Option<&'a str> {
    let of = |key: &str| {
        let value = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(value.trim_matches('"')).filter(|value| !value.is_empty())
    };
    of("ID").filter(|&id| id == "inferd").and_then(|_| of(key))
}

/// Which system an image holds, as the bundle of the same system says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its product.
    pub product: String,
    /// Its version.
    pub version: u64,
}

impl Image {
    /// Of an `os-release`; `None` where it does not say both.
    #[must_use]
    pub fn parse(os_release: &str) -> Option<Self> {
        let product = field(os_release, "IMAGE_ID")?.to_owned();
        Some(Self { product, version: field(os_release, "IMAGE_VERSION")?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_which_system_it_holds() {
        let text = "NAME=\"inferd appliance\"\nID=inferd\nIMAGE_ID=inferd-os\nIMAGE_VERSION=5\n";
        assert_eq!(Image::parse(text), Some(Image { product: "inferd-os".into(), version: 5 }));
        assert_eq!(field(text, "NAME"), Some("inferd appliance"));
        assert_eq!(field(text, "VERSION"), None, "IMAGE_VERSION is another field");
    }

    #[test]
    fn one_that_does_not_say_it_whole_says_nothing() {
        for text in [
            "",
            "ID=inferd\n",
            "ID=inferd\nIMAGE_ID=inferd-os\n",
            "ID=inferd\nIMAGE_VERSION=5\n",
            "ID=inferd\nIMAGE_ID=inferd-os\nIMAGE_VERSION=five\n",
            "ID=inferd\nIMAGE_ID=\nIMAGE_VERSION=5\n",
            "ID=debian\nIMAGE_ID=inferd-os\nIMAGE_VERSION=5\n",
            "IMAGE_ID=inferd-os\nIMAGE_VERSION=5\n",
        ] {
            assert_eq!(Image::parse(text), None, "{text}");
        }
    }
}
