//! What the image says of itself in `/etc/os-release`. Elsewhere it speaks of another system, and nothing in it is about us.

/// What an image of ours says of itself.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Release {
    /// Made with `--dev`.
    pub is_dev: bool,
    /// Which build it is.
    pub build: Option<String>,
}

impl Release {
    /// Of the running system.
    pub fn of_this_system() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let of = |key| inferd_system::field(text, key);
        Self { is_dev: of("VARIANT_ID") == Some("dev"), build: of("BUILD_ID").map(ToOwned::to_owned) }
    }

    /// What this firmware is called where its numbers are compared with those of another one: the daemon's version and, in an image,
    /// its build.
    pub fn firmware(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        self.build.as_ref().map_or_else(|| version.to_owned(), |build| format!("{version} {build}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_ours_says_which_build_it_is() {
        let release =
            Release::parse("NAME=\"inferd appliance\"\nID=inferd\nBUILD_ID=\"1a2b\"\nVARIANT_ID=dev\n");
        assert_eq!(release, Release { is_dev: true, build: Some("1a2b".into()) });
        assert_eq!(release.firmware(), concat!(env!("CARGO_PKG_VERSION"), " 1a2b"));
        assert!(!Release::parse("ID=inferd\nVARIANT_ID=production\n").is_dev);
    }

    #[test]
    fn another_system_says_nothing_about_us() {
        for other in ["", "ID=debian\nBUILD_ID=x\nVARIANT_ID=dev\n", "VARIANT_ID=dev\nBUILD_ID=x\n"] {
            assert_eq!(Release::parse(other), Release::default());
            assert_eq!(Release::parse(other).firmware(), env!("CARGO_PKG_VERSION"));
        }
    }
}
