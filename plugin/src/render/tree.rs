//! Ways that begin alike, as one tree: lines, and forks with what follows on each side.

/// One line of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Heads a namespace: node and name.
    Head(String, String),
    /// A decision: short word, what was decided, and objects below it.
    Step(String, String, Vec<String>),
}

/// One way: its share, its lines, and which branch it is.
#[derive(Clone, Debug)]
pub struct Path {
    /// Share of packets.
    pub probability: f64,
    /// Position of the branch.
    pub branch: usize,
    /// What happens.
    pub lines: Vec<Line>,
}

/// Lines that some branches share, and what comes then.
#[derive(Clone, Debug)]
pub struct Node {
    /// Share of packets, all its branches together.
    pub probability: f64,
    /// Lines.
    pub lines: Vec<Line>,
    /// What follows.
    pub then: Then,
}

/// What follows on shared lines.
#[derive(Clone, Debug)]
pub enum Then {
    /// The branch ends.
    End(usize),
    /// The ways part.
    Fork(Vec<Node>),
}

/// Makes a tree of ways; `None` without any. Their order is kept.
pub fn grow(paths: Vec<Path>) -> Option<Node> {
    let probability = paths.iter().map(|path| path.probability).sum();
    let mut paths = paths;
    if paths.len() == 1 {
        return paths.pop().map(|path| Node {
            probability,
            lines: path.lines,
            then: Then::End(path.branch),
        });
    }
    let first = paths.first()?;
    let shared = (0..first.lines.len())
        .take_while(|at| {
            paths
                .iter()
                .all(|path| path.lines.get(*at) == first.lines.get(*at))
        })
        .count();
    let lines = first.lines.iter().take(shared).cloned().collect();
    // Ways that end while others go on, or that are the same to the end, each stand alone.
    let mut groups: Vec<(Option<Line>, Vec<Path>)> = Vec::new();
    for mut path in paths {
        path.lines.drain(..shared);
        let key = path.lines.first().cloned();
        let place = groups
            .iter_mut()
            .find(|(known, _)| *known == key && key.is_some());
        match place {
            Some((_, group)) => group.push(path),
            None => groups.push((key, vec![path])),
        }
    }
    let forks = groups.into_iter().filter_map(|(_, group)| grow(group));
    Some(Node {
        probability,
        lines,
        then: Then::Fork(forks.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(branch: usize, words: &[&str]) -> Path {
        let step = |word: &&str| Line::Step((*word).to_owned(), String::new(), Vec::new());
        Path {
            probability: 0.25,
            branch,
            lines: words.iter().map(step).collect(),
        }
    }

    fn show(node: &Node) -> String {
        let mut text: String = node
            .lines
            .iter()
            .map(|line| match line {
                Line::Head(..) => String::new(),
                Line::Step(word, ..) => word.clone(),
            })
            .collect();
        match &node.then {
            Then::End(branch) => text += &["=", &branch.to_string()].concat(),
            Then::Fork(forks) => {
                let forks: Vec<String> = forks.iter().map(show).collect();
                text += &["(", &forks.join(" "), ")"].concat();
            }
        }
        text
    }

    #[test]
    fn shared_beginnings_are_said_once() {
        let tree = grow(vec![
            path(0, &["a", "b", "x"]),
            path(1, &["a", "b", "y", "1"]),
            path(2, &["a", "b", "y", "2"]),
            path(3, &["a", "b"]),
        ]);
        let tree = tree.expect("a tree");
        assert_eq!(show(&tree), "ab(x=0 y(1=1 2=2) =3)");
        assert!((tree.probability - 1.0).abs() < 1e-9);
        assert!(grow(Vec::new()).is_none());
    }
}
