//! Completion of words for shells, as kubectl asks its plugins for it.
//!
//! kubectl (1.26 and later) runs `kubectl_complete-netpath WORDS... PART`; that script calls this program
//! as `kubectl-netpath __complete WORDS... PART`. This program does the same under the script's name, so that a
//! link is enough. The answer is cobra's: a candidate on each line, with its meaning behind a tab, then `:`
//! and a number. Whoever completes a word wants no messages: what goes wrong gives fewer candidates.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, Args, Command, CommandFactory, FromArgMatches};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::Api;
use kube::api::ListParams;
use kube::core::ClusterResourceScope;
use netpath::explain::codes;
use serde::de::DeserializeOwned;

use crate::cli::Cli;
use crate::kube_client::Kube;
use crate::kube_flags::ConnectionFlags;

/// The word that asks for completion.
pub const WORD: &str = "__complete";
/// Shells wait for the answer with every press of a key.
const LIMIT: Duration = Duration::from_secs(2);
/// Objects of a kind that are asked for: nobody chooses among more.
const MOST: u32 = 500;
/// The name in PATH that kubectl runs.
const COMPLETER: &str = "kubectl_complete-netpath";
/// What may stand under that name; release archives hold it too.
pub const SCRIPT: &str = include_str!("kubectl_complete-netpath");

/// Whether a program that was started as `name` has to complete words.
pub fn is_completer(name: &OsStr) -> bool {
    Path::new(name).file_stem() == Some(OsStr::new(COMPLETER))
}

/// What a shell does with the candidates (cobra's `ShellCompDirective`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directive {
    /// Files are completed where there is no candidate.
    Files = 0,
    /// Nothing else is completed.
    Only = 4,
}

/// What a word stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// A source of `trace`, or the place of `map` and `dump`.
    Place,
    /// A destination of `trace`.
    Destination,
    /// A namespace.
    Namespace,
    /// A node by its bare name.
    Node,
}

/// Prints candidates for the last of `words`.
pub async fn run(words: Vec<OsString>) -> String {
    let words: Vec<String> = words
        .into_iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let (candidates, directive) = candidates(&words).await;
    let part = words.last().map_or("", String::as_str);
    let mut text = String::new();
    for (word, meaning) in candidates {
        if !word.starts_with(part) {
            continue;
        }
        let line = match meaning.lines().next() {
            Some(meaning) => format!("{word}\t{meaning}"),
            None => word,
        };
        text.push_str(&crate::render::escaped(&line).replace("\\t", "\t"));
        text.push('\n');
    }
    [text, format!(":{}\n", directive as u8)].concat()
}

type Candidates = (BTreeSet<(String, String)>, Directive);

async fn candidates(words: &[String]) -> Candidates {
    let Some((part, before)) = words.split_last() else {
        return (BTreeSet::new(), Directive::Only);
    };
    let root = Cli::command();
    let (command, place, last) = walk(&root, before);
    if let Some(flag) = last {
        return of_flag(flag, words).await;
    }
    if part.starts_with('-') {
        return (flags(&root, command), Directive::Only);
    }
    if command.has_subcommands() {
        let known = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let all = known.map(|sub| (sub.get_name().to_owned(), about(sub.get_about())));
        return (all.collect(), Directive::Only);
    }
    let positional = command.get_positionals().nth(place);
    let fixed = positional.map(possible).unwrap_or_default();
    if !fixed.is_empty() {
        return (fixed, Directive::Only);
    }
    let wanted = match (command.get_name(), place) {
        ("explain", 0) => {
            let all = codes::ALL.iter();
            let all = all.map(|code| (code.code.to_owned(), code.title.to_owned()));
            return (all.collect(), Directive::Only);
        }
        ("save", 0) => return (BTreeSet::new(), Directive::Files),
        ("save" | "check", _) => Wanted::Node,
        ("trace" | "map" | "capture", 0) | ("dump", 1) => Wanted::Place,
        ("trace", 1) => Wanted::Destination,
        _ => return (BTreeSet::new(), Directive::Only),
    };
    if before.iter().any(|word| word == "--local") {
        return (of_machine(), Directive::Only);
    }
    if before.iter().any(|word| word.starts_with("--snapshot")) {
        return (BTreeSet::new(), Directive::Only);
    }
    (of_cluster(wanted, words).await, Directive::Only)
}

/// The command that some words lead to, how many of its own words were typed, and the flag that waits
/// for its value, if one does.
fn walk<'a>(root: &'a Command, words: &[String]) -> (&'a Command, usize, Option<&'a Arg>) {
    let mut command = root;
    let mut place = 0;
    let mut waiting: Option<&Arg> = None;
    for word in words {
        if waiting.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            // `--flag=value` has its value already.
            waiting = flag(root, command, word).filter(|arg| arg.get_action().takes_values());
            continue;
        }
        match command.find_subcommand(word) {
            Some(sub) => (command, place) = (sub, 0),
            None => place += 1,
        }
    }
    (command, place, waiting)
}

fn all_flags<'a>(root: &'a Command, command: &'a Command) -> impl Iterator<Item = &'a Arg> {
    let of_all = root.get_arguments().filter(|arg| arg.is_global_set());
    let own = command.get_arguments().chain(of_all);
    own.filter(|arg| !arg.is_positional() && !arg.is_hide_set())
}

fn flag<'a>(root: &'a Command, command: &'a Command, word: &str) -> Option<&'a Arg> {
    all_flags(root, command).find(|arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg
            .get_short()
            .is_some_and(|short| word == format!("-{short}")),
    })
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map_or_else(String::new, ToString::to_string)
}

fn flags(root: &Command, command: &Command) -> BTreeSet<(String, String)> {
    let named = all_flags(root, command).filter_map(|arg| {
        let long = arg.get_long()?;
        Some((format!("--{long}"), about(arg.get_help())))
    });
    named.collect()
}

fn possible(arg: &Arg) -> BTreeSet<(String, String)> {
    let values = arg.get_possible_values();
    let shown = values.iter().filter(|value| !value.is_hide_set());
    shown
        .map(|value| (value.get_name().to_owned(), about(value.get_help())))
        .collect()
}

async fn of_flag(flag: &Arg, words: &[String]) -> Candidates {
    let fixed = possible(flag);
    if !fixed.is_empty() {
        return (fixed, Directive::Only);
    }
    match flag.get_long() {
        Some("namespace" | "helper-namespace") => {
            (of_cluster(Wanted::Namespace, words).await, Directive::Only)
        }
        Some(
            "kubeconfig"
            | "snapshot"
            | "certificate-authority"
            | "client-certificate"
            | "client-key",
        ) => (BTreeSet::new(), Directive::Files),
        _ => (BTreeSet::new(), Directive::Only),
    }
}

/// Namespaces of this machine that have a name.
fn of_machine() -> BTreeSet<(String, String)> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let mut all: BTreeSet<(String, String)> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().to_string_lossy().into_owned();
            Some((format!("netns/{name}"), String::new()))
        })
        .collect();
    all.insert(("host".to_owned(), "this machine's own namespace".to_owned()));
    all
}

async fn of_cluster(wanted: Wanted, words: &[String]) -> BTreeSet<(String, String)> {
    let asking = async {
        let kube = connection(words)?.connect().await.ok()?;
        Some(objects(&kube, wanted).await)
    };
    let found = tokio::time::timeout(LIMIT, asking).await;
    found.ok().flatten().unwrap_or_default()
}

/// The connection flags among the words, whatever else is among them.
fn connection(words: &[String]) -> Option<ConnectionFlags> {
    let command = ConnectionFlags::augment_args(Command::new("words"));
    let (mut taken, mut rest) = (vec!["words".to_owned()], words.iter());
    while let Some(word) = rest.next() {
        let name = word.split('=').next().unwrap_or_default();
        let Some(arg) = flag(&command, &command, name) else {
            continue;
        };
        taken.push(word.clone());
        if arg.get_action().takes_values() && !word.contains('=') {
            taken.extend(rest.next().filter(|value| !value.is_empty()).cloned());
        }
    }
    let matches = command
        .ignore_errors(true)
        .try_get_matches_from(taken)
        .ok()?;
    ConnectionFlags::from_arg_matches(&matches).ok()
}

async fn objects(kube: &Kube, wanted: Wanted) -> BTreeSet<(String, String)> {
    let within = kube.namespace.as_str();
    let pods = async {
        match wanted {
            Wanted::Place | Wanted::Destination => {
                names(&Api::<Pod>::namespaced(kube.client.clone(), within)).await
            }
            Wanted::Namespace | Wanted::Node => Vec::new(),
        }
    };
    let services = async {
        match wanted {
            Wanted::Destination => {
                names(&Api::<Service>::namespaced(kube.client.clone(), within)).await
            }
            _ => Vec::new(),
        }
    };
    let others = async {
        match wanted {
            Wanted::Namespace => all::<Namespace>(kube).await,
            _ => all::<Node>(kube).await,
        }
    };
    let (pods, services, others) = tokio::join!(pods, services, others);
    // A name that both a Service and a pod have is typed with its kind.
    let twice = |name: &String| pods.contains(name) && services.contains(name);
    let word = |kind: &str, name: &String| {
        if twice(name) {
            format!("{kind}/{name}")
        } else {
            name.clone()
        }
    };
    let mut found = BTreeSet::new();
    found.extend(
        pods.iter()
            .map(|name| (word("pod", name), "pod".to_owned())),
    );
    found.extend(
        services
            .iter()
            .map(|name| (word("svc", name), "Service".to_owned())),
    );
    found.extend(others.iter().map(|name| match wanted {
        Wanted::Namespace => (name.clone(), "namespace".to_owned()),
        Wanted::Node => (name.clone(), "node".to_owned()),
        Wanted::Place | Wanted::Destination => (format!("node/{name}"), "node".to_owned()),
    }));
    // With the kind, for those who type it.
    found.extend(
        pods.iter()
            .map(|name| (format!("pod/{name}"), "pod".to_owned())),
    );
    found.extend(
        services
            .iter()
            .map(|name| (format!("svc/{name}"), "Service".to_owned())),
    );
    found
}

async fn all<K>(kube: &Kube) -> Vec<String>
where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug,
    K: DeserializeOwned,
{
    names(&Api::<K>::all(kube.client.clone())).await
}

/// Names of what may be listed; none where that is refused.
async fn names<K>(api: &Api<K>) -> Vec<String>
where
    K: Clone + Debug + DeserializeOwned,
{
    let listed = api.list_metadata(&ListParams::default().limit(MOST)).await;
    let items = listed.map(|list| list.items).unwrap_or_default();
    items
        .into_iter()
        .filter_map(|item| item.metadata.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(words: &[&str]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run(words.iter().map(Into::into).collect()))
    }

    #[test]
    fn a_link_of_the_script_s_name_completes() {
        let is = |name: &str| is_completer(OsStr::new(name));
        assert!(is("/home/ann/.krew/bin/kubectl_complete-netpath"));
        assert!(is("kubectl_complete-netpath.exe"));
        assert!(!is("kubectl-netpath") && !is(""));
    }

    #[test]
    fn words_that_need_no_cluster() {
        let text = answer(&["tr"]);
        assert!(
            text.starts_with("trace\tTrace a packet") && text.ends_with("\n:4\n"),
            "{text}"
        );
        let text = answer(&["trace", "web-0", "--prot"]);
        assert!(text.starts_with("--protocol\t"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        let text = answer(&["trace", "web-0", "api", "--protocol", "u"]);
        assert!(text.starts_with("udp"), "{text}");
        let text = answer(&["-n", "shop", "dump", "ro"]);
        assert!(text.starts_with("routes\t"), "{text}");
        let text = answer(&["explain", "NP010"]);
        assert!(
            text.starts_with("NP0101\tforwarding is filtered\n"),
            "{text}"
        );
        assert_eq!(answer(&["trace", "--kubeconfig", ""]), ":0\n");
        assert_eq!(answer(&["snapshot", "sa"]).lines().count(), 2);
        assert_eq!(answer(&[]), ":4\n");
    }

    #[test]
    fn a_cluster_that_does_not_answer_gives_no_candidates() {
        let server = "--server=https://127.0.0.1:1";
        assert_eq!(answer(&["trace", server, ""]), ":4\n");
    }

    #[test]
    fn connection_flags_are_found_among_other_words() {
        let words = [
            "trace",
            "-n",
            "shop",
            "--context=blue",
            "--protocol",
            "udp",
            "web-0",
            "",
        ];
        let flags = connection(&words.map(str::to_owned)).unwrap();
        assert_eq!(flags.namespace.as_deref(), Some("shop"));
        assert_eq!(flags.context.as_deref(), Some("blue"));
    }
}
