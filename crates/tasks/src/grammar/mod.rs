//! Random grammars of SelectivBench (Bouhadjar et al. 2026, arXiv 2601.12598).
//!
//! V symbols, one of them the end `#`. Some letters are ambiguous: they stand for several states. From each state, every
//! symbol leads to at most one state, so the grammar is a deterministic automaton once the start is known: the states
//! can be told from the symbols, but only by remembering what came before.
//!
//! ```text
//! for every state i and symbol y:  one instance j of y;  edge i -> j with probability rho instances(y) / depth
//! ```
//!
//! Drawn again until every state leads to `#`. Strings begin at a start state, follow edges of equal probability, and
//! end at `#`.

mod task;
#[cfg(test)]
mod tests;

use weft_tensor::Rng;

use crate::error::{Error, Result, share, size};
use crate::example::{below, distinct};
pub use task::GrammarTask;

/// The end symbol, and the state that it stands for.
pub const END: usize = 0;

/// Draws after which a grammar is given up.
const TRIES: usize = 100_000;

/// A grammar. States are numbered by symbol and instance, the end first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grammar {
    /// The symbol of each state.
    symbols: Vec<usize>,
    starts: Vec<usize>,
    /// Where each state leads, at most one state per symbol.
    successors: Vec<Vec<usize>>,
}

/// What a grammar is drawn by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Symbols, the end among them.
    pub symbols: usize,
    /// Letters that stand for several states.
    pub ambiguous: usize,
    /// How many states each of them stands for.
    pub depth: usize,
    /// Start states.
    pub starts: usize,
    /// The probability that an ambiguous letter may follow a state.
    pub density: f64,
}

impl Grammar {
    /// A grammar by its parts: the symbol of each state (the end first), the start states, and edges between states.
    /// `None` when two edges of a state lead to the same symbol, the end has an edge, or a number is out of range.
    pub fn new(
        symbols: Vec<usize>,
        starts: Vec<usize>,
        edges: &[(usize, usize)],
    ) -> Option<Grammar> {
        let states = symbols.len();
        let mut successors = vec![Vec::new(); states];
        for &(from, to) in edges {
            if from == END || from >= states || to >= states {
                return None;
            }
            successors[from].push(to);
        }
        let unique = |to: &Vec<usize>| {
            let mut seen: Vec<usize> = to.iter().map(|&s| symbols[s]).collect();
            seen.sort_unstable();
            seen.windows(2).all(|pair| pair[0] != pair[1])
        };
        let right = symbols.first() == Some(&END)
            && starts.iter().all(|&s| s != END && s < states)
            && !starts.is_empty()
            && successors.iter().all(unique);
        right.then_some(Grammar {
            symbols,
            starts,
            successors,
        })
    }

    /// A random grammar.
    ///
    /// # Errors
    /// When the shape is impossible, or no draw of many is a grammar.
    pub fn draw(rng: &mut Rng, shape: &Shape) -> Result<Grammar> {
        let task = "grammar";
        let letters = shape.symbols.saturating_sub(1);
        size(task, "symbols", shape.symbols, 2..=257)?;
        size(task, "ambiguous", shape.ambiguous, 0..=letters)?;
        size(task, "depth", shape.depth, 1..=64)?;
        share(task, "density", shape.density)?;
        let mut repeated = vec![false; letters];
        for letter in distinct(rng, letters, shape.ambiguous) {
            repeated[letter] = true;
        }
        let mut symbols = vec![END];
        for (letter, &repeated) in repeated.iter().enumerate() {
            let instances = if repeated { shape.depth } else { 1 };
            symbols.extend(std::iter::repeat_n(letter + 1, instances));
        }
        let states = symbols.len();
        size(task, "starts", shape.starts, 1..=states - 1)?;
        for _ in 0..TRIES {
            let edges = draw_edges(rng, &symbols, shape);
            let starts = distinct(rng, states, shape.starts);
            let grammar = Grammar::new(symbols.clone(), starts, &edges);
            if let Some(grammar) = grammar.filter(Grammar::always_ends) {
                return Ok(grammar);
            }
        }
        Err(Error::Knob {
            task,
            reason: "no grammar of this shape was found: give a greater density or fewer starts"
                .into(),
        })
    }

    /// Number of states, the end among them.
    pub fn states(&self) -> usize {
        self.symbols.len()
    }

    /// The symbol of a state.
    pub fn symbol(&self, state: usize) -> usize {
        self.symbols[state]
    }

    /// Where strings begin.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Where a state may lead; behind the end a new string begins.
    pub fn successors(&self, state: usize) -> &[usize] {
        match state {
            END => &self.starts,
            _ => &self.successors[state],
        }
    }

    /// The state that a symbol leads to. Where start states share the symbol, the first of them.
    pub fn follow(&self, state: usize, symbol: usize) -> Option<usize> {
        let leads = |&&to: &&usize| self.symbols[to] == symbol;
        self.successors(state).iter().find(leads).copied()
    }

    /// The symbols that cannot follow a state.
    pub fn ungrammatical(&self, state: usize) -> Vec<usize> {
        let highest = self.symbols.iter().copied().max().unwrap_or(END);
        let never = |&y: &usize| self.follow(state, y).is_none();
        (0..=highest).filter(never).collect()
    }

    /// `count` states of strings one after the other.
    pub fn walk(&self, rng: &mut Rng, count: usize) -> Vec<usize> {
        let mut state = END;
        let step = |_| {
            let next = self.successors(state);
            state = next[below(rng, next.len())];
            state
        };
        (0..count).map(step).collect()
    }

    /// Whether every state leads to the end.
    fn always_ends(&self) -> bool {
        let mut ends = vec![false; self.states()];
        ends[END] = true;
        // Each pass settles the states that are one edge further away.
        loop {
            let reached = |s: &usize| !ends[*s] && self.successors[*s].iter().any(|&to| ends[to]);
            let more: Vec<usize> = (0..self.states()).filter(reached).collect();
            if more.is_empty() {
                return ends.iter().all(|&e| e);
            }
            more.into_iter().for_each(|s| ends[s] = true);
        }
    }

    /// ln of the largest eigenvalue of the matrix of edges, the end leading to the starts: how fast the number of
    /// strings grows with their length.
    pub fn topological_entropy(&self) -> f64 {
        let n = self.states();
        let mut v = vec![1.0 / n as f64; n];
        let mut growth = 1.0;
        // Power iteration on A + 1, which has one eigenvalue of greatest size even where A is periodic.
        for _ in 0..10_000 {
            let next: Vec<f64> = (0..n)
                .map(|i| v[i] + self.successors(i).iter().map(|&j| v[j]).sum::<f64>())
                .collect();
            let sum: f64 = next.iter().sum();
            let change = (sum - growth).abs();
            growth = sum;
            v = next.into_iter().map(|x| x / sum).collect();
            if change < 1e-14 * sum {
                break;
            }
        }
        (growth - 1.0).ln()
    }
}

fn draw_edges(rng: &mut Rng, symbols: &[usize], shape: &Shape) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    for from in 1..symbols.len() {
        let mut first = 0;
        while first < symbols.len() {
            let instances = symbols[first..]
                .iter()
                .take_while(|&&y| y == symbols[first])
                .count();
            let to = first + below(rng, instances);
            let probability = shape.density * instances as f64 / shape.depth as f64;
            if rng.unit() < probability {
                edges.push((from, to));
            }
            first += instances;
        }
    }
    edges
}
