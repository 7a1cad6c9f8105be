//! Rule sets of what runs on Kubernetes nodes and in pods, in `corpus`, one directory each.
//!
//! All are written for one address plan (README.md there), so that one harness can send packets through each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{feed, run};
use crate::proxy::accounting;

/// Which programs load a set, and so which of the kernel's engines holds its rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loader {
    /// `iptables-nft-restore` and `ip6tables-nft-restore`.
    IptablesNft,
    /// `iptables-legacy-restore` and `ip6tables-legacy-restore`.
    IptablesLegacy,
    /// `nft -f`.
    Nft,
}

impl Loader {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nft => "nft",
        }
    }
}

/// One rule set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuleSet {
    /// Name of its directory.
    pub name: String,
    dir: PathBuf,
}

/// All rule sets, by name.
pub fn all() -> Result<Vec<RuleSet>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut sets = Vec::new();
    for entry in fs::read_dir(&root).with_context(|| format!("list {}", root.display()))? {
        let dir = entry
            .with_context(|| format!("list {}", root.display()))?
            .path();
        if dir.is_dir() {
            let name = dir.file_name().unwrap_or_default();
            sets.push(RuleSet {
                name: name.to_string_lossy().into_owned(),
                dir,
            });
        }
    }
    ensure!(
        !sets.is_empty(),
        "list {}: no rule sets there",
        root.display()
    );
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sets)
}

impl RuleSet {
    /// The ways to load it.
    pub fn loaders(&self) -> &'static [Loader] {
        if self.dir.join("ruleset.nft").is_file() {
            &[Loader::Nft]
        } else {
            &[Loader::IptablesNft, Loader::IptablesLegacy]
        }
    }

    /// Whether it belongs into a pod's namespace rather than a node's.
    pub fn in_pod(&self) -> bool {
        ["istio", "linkerd"]
            .iter()
            .any(|mesh| self.name.starts_with(mesh))
    }

    /// A file of the set; none where the set has no such file.
    pub fn file(&self, name: &str) -> Result<Option<String>> {
        let path = self.dir.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(text))
    }

    /// Loads it in the network namespace of the calling thread.
    pub fn load(&self, loader: Loader) -> Result<()> {
        self.load_here(loader)
            .with_context(|| format!("load rule set {}", self.name))
    }

    fn load_here(&self, loader: Loader) -> Result<()> {
        for name in self.file("nfacct.names")?.unwrap_or_default().lines() {
            ensure!(
                accounting::ensure(name, None)?,
                "make accounting object {name}: the kernel has none"
            );
        }
        if let Some(sets) = self.file("ipset.rules")? {
            feed(&["ipset", "restore"], &sets)?;
        }
        let backend = match loader {
            Loader::Nft => {
                let path = self.dir.join("ruleset.nft").display().to_string();
                run(&["nft", "-f", &path])?;
                return Ok(());
            }
            Loader::IptablesNft => "nft",
            Loader::IptablesLegacy => "legacy",
        };
        for tool in ["iptables", "ip6tables"] {
            if let Some(rules) = self.file(&format!("{tool}.rules"))? {
                feed(&[&format!("{tool}-{backend}-restore")], &rules)?;
            }
        }
        Ok(())
    }
}
