//! Planted bugs: the kit and the models run with each of the mistakes of `src/planted.rs`, and catch it.
//!
//! Each level is the ordinary test of that level in a process of its own, with a small effort. The ordinary run takes
//! the level that sees the mistake first, with and without the rules on the trace where both can; with
//! `QCOW2_TEST_PLANTS=all` every level of the kit tries every mistake, which takes some ten minutes.
//! `QCOW2_TEST_PLANTS=Name` takes the mistakes whose names have that in them. `QCOW2_TEST_SPENT=1` prints what each level has
//! cost and at which of its cases each mistake was caught.
//!
//! A run ends with its first failure, so what a mistake costs is the way to the case that catches it. Without a mistake each
//! level passes at least the cases that were needed.

use qcow2::testing::planted::Plant::{self, *};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest run of one level on a busy machine; a mistake that makes the tests wait for ever is not caught.
const LIMIT: Duration = Duration::from_secs(600);

/// Stands in every program that has the planted bugs.
const MARK: &[u8] = b"QCOW2_TEST_PLANT=";

/// One test of the kit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Level {
    name: &'static str,
    binary: &'static str,
    test: &'static str,
    effort: &'static str,
    /// The rules and ownership on every trace; without them the level must see for itself.
    rules: bool,
    /// The states after a power cut; without them the rules must see for themselves.
    cuts: bool,
}

/// A program with this name is the unit tests in a build for the models (`src/loom`).
const LOOM_BINARY: &str = "loom";

const fn model(name: &'static str, test: &'static str) -> Level {
    level(name, LOOM_BINARY, test, "1")
}

const fn level(name: &'static str, binary: &'static str, test: &'static str, effort: &'static str) -> Level {
    Level { name, binary, test, effort, rules: false, cuts: true }
}

const PARTS: Level = level("parts", "qcow2", "storage::file", "1");
const RULES: Level =
    Level { rules: true, cuts: false, ..level("rules", "power_cut", "random_lists_on_random_images", "0.5") };
const CUT: Level = level("power cut", "power_cut", "random_lists_on_random_images", "0.6");
const SNAPSHOTS: Level =
    level("power cut of snapshots", "power_cut", "short_lists_with_snapshots_and_compressed_clusters", "1");
const SNAPSHOT_RULES: Level = Level { name: "rules on snapshots", rules: true, cuts: false, ..SNAPSHOTS };
const GROWTH: Level = level("power cut of a table growth", "power_cut", "the_refcount_table_grows", "1");
const GROWTH_RULES: Level = Level { name: "rules on a table growth", rules: true, cuts: false, ..GROWTH };
const DATA_FILE: Level = level("power cut of a data file", "power_cut", "external_data_files", "0.3");
const DATA_FILE_RULES: Level = Level { name: "rules on a data file", rules: true, cuts: false, ..DATA_FILE };
const PAIRS_RULES: Level = Level { name: "rules on races", rules: true, ..PAIRS };
const DAMAGED: Level = level("damaged images", "damaged", "", "1");
const DAMAGED_RULES: Level = Level { name: "rules on damaged images", rules: true, ..DAMAGED };
const BITMAPS: Level = level("power cut of bitmaps", "power_cut", "short_lists_with_bitmaps", "1");
const BITMAP_RULES: Level = Level { name: "rules on bitmaps", rules: true, cuts: false, ..BITMAPS };
const BITMAP_FAULTS: Level =
    level("faults of bitmaps", "faults", "each_call_of_lists_with_bitmaps_fails", "1");
const FAULTS: Level = level("faults", "faults", "each_call_fails", "0.3");
const FINAL: Level = level("failed sync", "faults", "a_failed_sync_is_final", "1");
const READER: Level = level("parked reader", "races", "a_parked_reader", "1");
const STREAM: Level = level("reused place", "races", "a_reused_place", "1");
const PAIRS: Level = level("races", "races", "every_pair", "0.2");
const MODEL: Level = level("model", "model", "random_requests", "0.1");
const ENCRYPTED: Level = level("encrypted images", "encryption", "lists_on_images_made_here", "0.3");
const SLOTS: Level = level("key slots", "encryption_slots", "a_power_cut", "1");
const ENCRYPTED_CUT: Level =
    level("power cut of encrypted images", "power_cut", "short_lists_on_encrypted_images", "0.2");
const ENCRYPTED_RULES: Level =
    Level { name: "rules on encrypted images", rules: true, cuts: false, ..ENCRYPTED_CUT };
const SECTOR_TURNS: Level = level("parts of sectors", "encryption", "turns::a_part_of_a_sector", "1");
const THREADS: Level = level("threads", "model", "many_threads", "0.3");

const CLOCK: Level = model("model of the clock", "loom::clock::what_a_past_ticket");
const FLUSHES: Level = model("model of flushes", "loom::clock::a_shared_flush");
const PINS: Level = model("model of pins", "loom::alone::a_pinned_cluster");
const GATE: Level = model("model of the gate", "loom::alone::alone_is_alone");
const STATE: Level = model("model of the state", "loom::alone::a_state_that_is_put");
const CLAIMS: Level = model("model of claims", "loom::alone::claims");
const ACCESS: Level = model("model of accesses", "storage::lock::loom");
const WRITE_THROUGH: Level = model("model of write-throughs", "loom::pages::a_write_through_waits");
const FLUSHED_PAGES: Level = model("model of flushed pages", "loom::pages::a_flush_waits");
const NEW_ENTRIES: Level = model("model of new entries", "loom::pages::a_flush_is_not_misled");
const UNWRITTEN: Level = model("model of unwritten pages", "loom::pages::a_flush_writes");
const TURNS: Level = model("model of turns", "loom::pages::changes_of_one_page");
const EVICTED: Level = model("model of evicted pages", "loom::pages::an_evicted_page");
const ROOM: Level = model("model of room", "loom::pages::there_is_room");
const IN_HAND: Level = model("model of pages in hand", "loom::pages::a_page_in_hand");
const LOADS: Level = model("model of loads", "loom::pages::a_page_is_loaded");

const MODELS: [Level; 16] = [
    CLOCK,
    FLUSHES,
    PINS,
    GATE,
    STATE,
    CLAIMS,
    ACCESS,
    WRITE_THROUGH,
    FLUSHED_PAGES,
    NEW_ENTRIES,
    UNWRITTEN,
    TURNS,
    EVICTED,
    ROOM,
    IN_HAND,
    LOADS,
];

const LEVELS: [Level; 27] = [
    PARTS,
    RULES,
    CUT,
    SNAPSHOT_RULES,
    SNAPSHOTS,
    GROWTH_RULES,
    GROWTH,
    DATA_FILE_RULES,
    DATA_FILE,
    BITMAP_RULES,
    BITMAPS,
    BITMAP_FAULTS,
    FAULTS,
    FINAL,
    READER,
    STREAM,
    PAIRS_RULES,
    PAIRS,
    DAMAGED_RULES,
    DAMAGED,
    MODEL,
    ENCRYPTED,
    SLOTS,
    ENCRYPTED_RULES,
    ENCRYPTED_CUT,
    SECTOR_TURNS,
    THREADS,
];

/// The levels that must catch it.
fn catchers(plant: Plant) -> &'static [Level] {
    match plant {
        NoBarrierBeforePointer => &[RULES, CUT],
        ContentsNotWaitedFor => &[RULES, CUT, ENCRYPTED_RULES, ENCRYPTED_CUT],
        LengthNotWaitedFor => &[RULES, CUT],
        CountsNotWritten => &[RULES, CUT],
        SyncSkipped => &[RULES, CUT],
        DataFileNotSynced => &[DATA_FILE_RULES, DATA_FILE],
        RawZeroesNotWaitedFor => &[DATA_FILE_RULES],
        CountLoweredAtOnce => &[RULES, CUT],
        FreedClusterReusedAtOnce => &[READER],
        StaleStreamKept => &[STREAM],
        PunchedLate => &[RULES, MODEL],
        DirtyBitAfterEntry => &[RULES, CUT],
        CleanBeforeCounts => &[RULES, CUT],
        HeaderBeforeItsTables => &[GROWTH_RULES, GROWTH],
        HeaderNotSynced => &[GROWTH_RULES, GROWTH],
        NewBlockNotSynced => &[RULES, CUT],
        CopiedIgnored => &[SNAPSHOT_RULES, SNAPSHOTS, PAIRS_RULES, PAIRS],
        DiscardShowsBacking => &[CUT, MODEL],
        ExtensionsDropped => &[RULES],
        ChangeNotMarked => &[BITMAPS],
        MarkedAfterWrite => &[BITMAP_FAULTS],
        InUseNotDurable => &[BITMAP_RULES, BITMAPS],
        BitmapsInUseTooShort => &[BITMAPS],
        FailedWriteForgotten => &[FAULTS],
        SyncRetried => &[FINAL],
        LinkedAfterFailedWrite => &[FAULTS],
        ShortWriteTakenForWhole => &[PARTS],
        ClaimSkipped => &[PAIRS],
        OverlapCheckOff => &[DAMAGED_RULES, DAMAGED],
        IvByGuestOffset => &[ENCRYPTED, ENCRYPTED_CUT],
        FreshClusterNotFilled => &[ENCRYPTED, ENCRYPTED_RULES, ENCRYPTED_CUT],
        SectorTurnSkipped => &[SECTOR_TURNS],
        KeySlotOrder => &[SLOTS],
        PastTicketOrdersNothing | TicketOfSyncUnderWay | TicketOfOldClock | SyncCompletedAtOnce => &[CLOCK],
        FlushJoinsRunningBarrier | FlushEndsUnannounced => &[FLUSHES],
        PinNotSeen | PinDatedLate | EpochNotEnded => &[PINS],
        PlaceNotTaken => &[GATE],
        OldStateLeftInPlace => &[STATE],
        ClaimsOverlapFromBelow | ClaimDroppedBeforeWait | ClaimDroppedUnannounced => &[CLAIMS],
        AccessChangedInTwoSteps => &[ACCESS],
        BarrierAsksLate => &[FLUSHED_PAGES],
        WriteThroughAsksLate | PagesInHandNotWaitedFor | LastPageInHandNotWaitedFor => &[WRITE_THROUGH],
        RipenedByAnotherChange => &[NEW_ENTRIES],
        EvictionAsksTwice => &[ROOM],
        PageInHandEvicted => &[IN_HAND],
        WriteOutsOvertake => &[TURNS],
        UnwrittenPageForgotten | ReturnedPageNotSeen => &[UNWRITTEN],
        EvictedPageChanged => &[EVICTED],
        TwoLoadsIntoOneSet => &[LOADS],
    }
}

/// What cargo builds, or has built: test programs by name.
fn build(mut command: Command) -> HashMap<String, PathBuf> {
    let answer = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let field = |line: &str, after: &str| {
        let rest = &line[line.find(after)? + after.len()..];
        Some(rest[..rest.find('"')?].to_string())
    };
    let tests = text.lines().filter_map(|line| {
        let target = &line[line.find("\"target\":")?..];
        Some((field(target, "\"name\":\"")?, field(line, "\"executable\":\"")?.into()))
    });
    tests.collect()
}

/// The unit tests for the models.
fn models() -> HashMap<String, PathBuf> {
    let mut script = Command::new("c-tests/loom.sh");
    script.args(["--no-run", "--message-format", "json"]);
    build(script).into_values().map(|program| (LOOM_BINARY.to_owned(), program)).collect()
}

fn kit() -> HashMap<String, PathBuf> {
    let mut cargo = Command::new(std::env::var("CARGO").expect("run by cargo"));
    cargo.args("test --no-run --quiet --features planted-bugs --message-format json --lib".split(' '));
    for level in LEVELS.iter().filter(|l| l.binary != "qcow2") {
        cargo.args(["--test", level.binary]);
    }
    let programs = build(cargo);
    // What c-tests/symbols.sh looks for in the libraries that are shipped is there where it should be.
    let bytes = std::fs::read(&programs["power_cut"]).expect("the test program");
    assert!(
        bytes.windows(MARK.len()).any(|w| w == MARK),
        "the mark of the planted bugs is not in the program"
    );
    programs
}

/// What a run has said: nothing if it passed.
struct Answer {
    failure: Option<String>,
    /// The number of the case that failed, where the level counts them.
    case: Option<usize>,
    reached: bool,
    seconds: f32,
}

/// Runs a level, of its cases at most the first so many.
fn run(programs: &HashMap<String, PathBuf>, level: Level, plant: Option<Plant>, cases: usize) -> Answer {
    let name = plant.map_or(String::new(), |p| format!("{p:?}"));
    let output = tempfile::tempfile().expect("a temporary file");
    let share = || Stdio::from(output.try_clone().expect("a second descriptor"));
    let started = Instant::now();
    let mut child = Command::new(&programs[level.binary])
        .arg(level.test)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("QCOW2_TEST_PLANT", name)
        .env("QCOW2_TEST_EFFORT", level.effort)
        .env("QCOW2_TEST_RULES", if level.rules { "1" } else { "0" })
        .env("QCOW2_TEST_CUTS", if level.cuts { "1" } else { "0" })
        .env("QCOW2_TEST_CASES", cases.to_string())
        // Whether a mistake is caught must not hang on the commit.
        .env("QCOW2_TEST_SEED", "1")
        .env("QCOW2_TEST_SHRINK", "0")
        .env("RUST_BACKTRACE", "0")
        .stdout(share())
        .stderr(share())
        .spawn()
        .expect("the test program");
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break Some(status);
        }
        if started.elapsed() > LIMIT {
            child.kill().expect("kill");
            child.wait().expect("wait");
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = read(output);
    let ran = text.contains("test result: ") && !text.contains(" 0 passed; 0 failed");
    let failure = match status {
        Some(s) if s.success() => {
            assert!(ran, "{}: no test ran\n{text}", level.name);
            None
        }
        Some(_) => Some(first_words(&text)),
        None => {
            assert!(plant.is_some(), "{}: no end after {LIMIT:?}", level.name);
            say(&format!("{plant:?}: no end after {LIMIT:?}, which is not a catch"));
            None
        }
    };
    let number = |line: &str| line.strip_prefix("case ")?.split_once(':')?.0.parse().ok();
    Answer {
        failure,
        case: text.lines().find_map(number),
        reached: text.contains("is reached"),
        seconds: started.elapsed().as_secs_f32(),
    }
}

fn read(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().expect("rewind");
    file.read_to_end(&mut bytes).expect("the output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The first panic's message.
fn first_words(text: &str) -> String {
    let lines = text.lines().skip_while(|l| !l.contains("panicked at")).skip(1).take(2);
    let words = lines.collect::<Vec<_>>().join(" | ");
    assert!(!words.is_empty(), "ended without a word\n{text}");
    words.chars().take(150).collect()
}

#[test]
fn the_kit_catches_each_planted_bug() {
    let all = std::env::var("QCOW2_TEST_PLANTS").is_ok_and(|s| s == "all");
    catch(&LEVELS, kit, all);
}

#[test]
fn the_models_catch_each_planted_bug() {
    catch(&MODELS, models, false);
}

/// What a level has cost.
#[derive(Default)]
struct Spent {
    /// Its cases that the mistakes needed; all, where it does not count them or a mistake was not caught.
    cases: usize,
    planted_seconds: f32,
    clean_seconds: f32,
}

/// Each mistake that some of these levels must catch is caught by them; with `all`, all of them try it.
fn catch(levels: &[Level], programs: fn() -> HashMap<String, PathBuf>, all: bool) {
    let part = std::env::var("QCOW2_TEST_PLANTS").ok().filter(|s| s != "all").unwrap_or_default();
    let ours =
        |p: &&Plant| catchers(**p).iter().any(|l| levels.contains(l)) && format!("{p:?}").contains(&part);
    let plants: Vec<Plant> = Plant::ALL.iter().filter(ours).copied().collect();
    if plants.is_empty() {
        return;
    }
    let started = Instant::now();
    let programs = programs();
    let mut spent: HashMap<Level, Spent> = HashMap::new();
    let (mut missed, mut table) = (Vec::new(), Vec::new());
    for plant in &plants {
        let wanted = catchers(*plant);
        let mut caught = Vec::new();
        for level in levels.iter().filter(|l| all || wanted.contains(l)) {
            let answer = run(&programs, *level, Some(*plant), usize::MAX);
            let word = match &answer.failure {
                Some(words) => format!("caught by {}: {words}", level.name),
                None if answer.reached => format!("not seen by {}", level.name),
                None => format!("not reached by {}", level.name),
            };
            say(&format!("{plant:?} {word} ({:.1} s)", answer.seconds));
            let case = answer.case.filter(|_| answer.failure.is_some());
            if answer.failure.is_some() {
                let case = case.map_or(String::new(), |c| format!(" at case {c}"));
                caught.push(format!("{}{case}, {:.1} s", level.name, answer.seconds));
            }
            let spent = spent.entry(*level).or_default();
            spent.cases = spent.cases.max(case.map_or(usize::MAX, |c| c + 1));
            spent.planted_seconds += answer.seconds;
            if wanted.contains(level) && !(answer.reached && answer.failure.is_some()) {
                missed.push(format!("{plant:?} {word}"));
            }
        }
        table.push(format!("{:26} {}", format!("{plant:?}"), caught.join("; ")));
    }
    for level in levels {
        let Some(spent) = spent.get_mut(level) else { continue };
        spent.clean_seconds = passes(&programs, *level, spent.cases);
    }
    if std::env::var("QCOW2_TEST_SPENT").is_ok() {
        table.iter().for_each(|line| say(line));
        levels.iter().filter_map(|l| Some((l, spent.get(l)?))).for_each(|(l, s)| tell_spent(l, s));
    }
    say(&format!("{} planted bugs, {:.0} s", plants.len(), started.elapsed().as_secs_f32()));
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Without a mistake a level passes the cases that catch them; the seconds that it takes.
fn passes(programs: &HashMap<String, PathBuf>, level: Level, cases: usize) -> f32 {
    let answer = run(programs, level, None, cases);
    assert!(!answer.reached);
    assert_eq!(answer.failure, None, "{} fails without a planted bug", level.name);
    say(&format!("no planted bug: {} passes, {:.1} s", level.name, answer.seconds));
    answer.seconds
}

fn tell_spent(level: &Level, spent: &Spent) {
    let cases = match spent.cases {
        usize::MAX => "all cases".to_string(),
        some => format!("{some} cases"),
    };
    say(&format!(
        "{:28} {:5.1} s with mistakes, {:5.1} s without, {cases}",
        level.name, spent.planted_seconds, spent.clean_seconds
    ));
}

/// Past the test runner, which would swallow it.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}
