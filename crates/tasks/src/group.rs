//! Finite groups by name: cyclic Z_k, symmetric S_k, alternating A_k.
//!
//! Elements are numbered. Those of Z_k are 0..k under addition; those of S_k and A_k are the permutations p of 0..k
//! (the even ones for A_k) in lexicographic order, the identity first, under
//!
//! ```text
//! (p q)(i) = p(q(i))
//! ```
//!
//! Words over S_3 and A_4 can be followed by circuits of constant depth with counting (the groups are solvable); over
//! A_5 and S_5 they are complete for NC1 (Barrington 1989), which is what makes them a test of state tracking.

use std::collections::HashMap;

/// A group given by its table of products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    order: usize,
    /// [order, order]
    products: Vec<usize>,
    generators: [usize; 2],
}

/// Larger groups make vocabularies and tables that no task needs.
const MAX_ORDER: usize = 1024;

impl Group {
    /// A group by name such as `"Z7"`, `"S5"` or `"A5"`; `None` for other names and for more than 1024 elements.
    pub fn named(name: &str) -> Option<Group> {
        let (family, degree) = name.split_at_checked(1)?;
        let degree: usize = degree.parse().ok()?;
        match family {
            "Z" if (2..=MAX_ORDER).contains(&degree) => Some(Group::cyclic(degree)),
            "S" if (2..=6).contains(&degree) => Some(Group::permutations(degree, false)),
            "A" if (3..=6).contains(&degree) => Some(Group::permutations(degree, true)),
            _ => None,
        }
    }

    fn cyclic(order: usize) -> Group {
        let products = (0..order * order).map(|i| (i / order + i % order) % order);
        Group {
            order,
            products: products.collect(),
            generators: [0, 1],
        }
    }

    fn permutations(degree: usize, even: bool) -> Group {
        let elements: Vec<Vec<usize>> = lexicographic(degree)
            .into_iter()
            .filter(|p| !even || is_even(p))
            .collect();
        let number: HashMap<&[usize], usize> = elements
            .iter()
            .enumerate()
            .map(|(i, p)| (p.as_slice(), i))
            .collect();
        let mut products = Vec::with_capacity(elements.len() * elements.len());
        for p in &elements {
            for q in &elements {
                let product: Vec<usize> = q.iter().map(|&i| p[i]).collect();
                products.push(number[product.as_slice()]);
            }
        }
        let generators = generators(degree, even).map(|p| number[p.as_slice()]);
        Group {
            order: elements.len(),
            products,
            generators,
        }
    }

    /// The number of elements; the identity is element 0.
    pub fn order(&self) -> usize {
        self.order
    }

    /// The element p q.
    pub fn product(&self, p: usize, q: usize) -> usize {
        self.products[p * self.order + q]
    }

    /// Two elements that together make all others. For Z_k they are 0 and 1, so that Z_2 is parity.
    pub fn generators(&self) -> [usize; 2] {
        self.generators
    }
}

/// A transposition and a cycle of all for S_k; for A_k two cycles of odd length that move everything between them.
fn generators(degree: usize, even: bool) -> [Vec<usize>; 2] {
    // The cycle first -> first + 1 -> .. -> last -> first.
    let cycle = |first: usize, last: usize| -> Vec<usize> {
        let step = |i: usize| match i {
            i if i < first || i > last => i,
            i if i == last => first,
            i => i + 1,
        };
        (0..degree).map(step).collect()
    };
    match even {
        false => [cycle(0, 1), cycle(0, degree - 1)],
        true => [cycle(0, 2), cycle(1 - degree % 2, degree - 1)],
    }
}

fn lexicographic(degree: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..degree {
        all = all
            .into_iter()
            .flat_map(|p: Vec<usize>| {
                let free = (0..degree).filter(|i| !p.contains(i)).collect::<Vec<_>>();
                free.into_iter().map(move |i| [&p[..], &[i]].concat())
            })
            .collect();
    }
    all
}

fn is_even(p: &[usize]) -> bool {
    let inversions = (0..p.len()).flat_map(|i| (0..i).map(move |j| (j, i)));
    inversions.filter(|&(j, i)| p[j] > p[i]).count() % 2 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, usize); 9] = [
        ("Z2", 2),
        ("Z7", 7),
        ("S2", 2),
        ("S3", 6),
        ("S5", 120),
        ("A3", 3),
        ("A4", 12),
        ("A5", 60),
        ("A6", 360),
    ];

    #[test]
    fn the_axioms_hold() {
        for (name, order) in NAMES {
            let g = Group::named(name).unwrap();
            assert_eq!(g.order(), order, "{name}");
            let some = |seed: usize| (seed * 7919 + 13) % order;
            for i in 0..order {
                assert_eq!(
                    (g.product(i, 0), g.product(0, i)),
                    (i, i),
                    "{name}: identity"
                );
                let inverses = (0..order).filter(|&j| g.product(i, j) == 0);
                assert_eq!(inverses.count(), 1, "{name}: inverse of {i}");
                let (j, k) = (some(i), some(i + 5));
                let (left, right) = (g.product(g.product(i, j), k), g.product(i, g.product(j, k)));
                assert_eq!(left, right, "{name}: associative");
            }
        }
    }

    #[test]
    fn two_generators_make_every_element() {
        for (name, order) in NAMES {
            let g = Group::named(name).unwrap();
            let mut seen = vec![false; order];
            let mut open = vec![0];
            while let Some(p) = open.pop() {
                if !std::mem::replace(&mut seen[p], true) {
                    open.extend(g.generators().map(|s| g.product(s, p)));
                }
            }
            assert!(seen.iter().all(|&s| s), "{name}");
        }
    }

    #[test]
    fn only_the_nonabelian_groups_do_not_commute() {
        let commutes = |name: &str| {
            let g = Group::named(name).unwrap();
            let [a, b] = g.generators();
            g.product(a, b) == g.product(b, a)
        };
        assert!(commutes("Z7") && commutes("A3"));
        assert!(!commutes("S3") && !commutes("A4") && !commutes("A5"));
    }

    #[test]
    fn other_names_are_none() {
        for name in ["", "Z", "Z1", "S1", "S7", "A2", "D4", "Z9999", "ß5", "S-3"] {
            assert_eq!(Group::named(name), None, "{name}");
        }
    }
}
