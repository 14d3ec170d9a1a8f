//! Random numbers that one seed replays.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `[0, bound)`; `bound` is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A good mix of 64 bits.
pub fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of bytes, the same in every run.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    let mut word = [0; 8];
    for chunk in bytes.chunks(8) {
        word[..chunk.len()].copy_from_slice(chunk);
        word[chunk.len()..].fill(0);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    mix(hash)
}

/// `QCOW2_TEST_SEED`, or a number made from the commit.
pub fn base_seed() -> u64 {
    if let Some(seed) = std::env::var("QCOW2_TEST_SEED").ok().and_then(|s| s.parse().ok()) {
        return seed;
    }
    let answer = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    // Short enough to type.
    answer.map_or(1, |out| hash_bytes(&out.stdout) % 1_000_000)
}

/// `QCOW2_TEST_EFFORT`, 1 by default: how many times the ordinary number of cases; 0.1 is a tenth of them.
pub fn effort() -> f64 {
    std::env::var("QCOW2_TEST_EFFORT").ok().and_then(|s| s.parse().ok()).unwrap_or(1.0)
}

/// The number of cases of which there are `ordinary` in the ordinary run.
pub fn cases(ordinary: u64) -> u64 {
    ((ordinary as f64 * effort()) as u64).max(1)
}

/// All of a list that is tried as a whole, or the share that an effort below 1 asks for.
pub fn share<T>(all: Vec<T>) -> Vec<T> {
    let stride = (1.0 / effort()).max(1.0) as usize;
    all.into_iter().step_by(stride).collect()
}

/// `QCOW2_TEST_CASES`: of operation lists that are tried one by one only so many.
pub fn most_cases() -> usize {
    std::env::var("QCOW2_TEST_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(usize::MAX)
}

/// A failing list is shrunk, unless `QCOW2_TEST_SHRINK` is 0.
pub fn shrinks() -> bool {
    std::env::var("QCOW2_TEST_SHRINK").map_or(true, |s| s != "0")
}

/// The line that replays a failure of `test` in `file`.
pub fn replay_line(file: &str, test: &str, seed: u64) -> String {
    format!("replay: QCOW2_TEST_SEED={seed} cargo test --test {file} {test}")
}
