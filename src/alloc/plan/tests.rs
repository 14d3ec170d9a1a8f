//! Plans against a slow oracle that knows the clusters one by one, for every geometry.

use super::*;

/// Used clusters, listed.
#[derive(Clone, Default)]
struct Listed(BTreeSet<u64>);

impl Room for Listed {
    fn next_free(&mut self, from: u64) -> Result<u64> {
        Ok((from..).find(|cluster| !self.0.contains(cluster)).unwrap())
    }

    fn take(&mut self, first: u64, count: u64) -> Result<()> {
        (first..first + count).for_each(|cluster| assert!(self.0.insert(cluster), "{cluster} is in use"));
        Ok(())
    }

    fn give_back(&mut self, first: u64, count: u64) -> Result<()> {
        (first..first + count).for_each(|cluster| assert!(self.0.remove(&cluster), "{cluster} is free"));
        Ok(())
    }
}

fn geometries() -> impl Iterator<Item = Geometry> {
    (9..=21).flat_map(|cluster_bits| (0..=6).map(move |order| geometry(cluster_bits, order)))
}

fn geometry(cluster_bits: u32, refcount_order: u32) -> Geometry {
    Geometry { version: 3, cluster_bits, refcount_order, extended_l2: false, external_data: false }
}

/// A small generator: the low bits of a linear congruence are poor, so the high ones are given.
fn next(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*state >> 33) % below
}

/// Used clusters in the ranges of the first blocks, mostly at their borders, where a new block is missing next.
fn some_used(geometry: &Geometry, seed: u64) -> Listed {
    let per_block = geometry.refcount_block_entries();
    let mut state = seed;
    let mut used = Listed::default();
    used.0.insert(0);
    let ranges = 1 + next(&mut state, 40);
    for _ in 0..next(&mut state, 8) {
        let border = next(&mut state, ranges) * per_block;
        let first = (border + next(&mut state, 5)).saturating_sub(next(&mut state, 5));
        used.0.extend(first..first + 1 + next(&mut state, 8));
    }
    if per_block <= 128 && seed % 4 == 0 {
        // Nothing free for many blocks: what is new has to count itself.
        used.0.extend(0..per_block * (70 + next(&mut state, 30)));
    }
    used
}

/// The places that the rules of the module give, found by asking again from the start.
fn slow_plan(geometry: &Geometry, used: &Listed, from: u64) -> (Vec<(u64, u64)>, u64, u64) {
    let index = |cluster: &u64| cluster / geometry.refcount_block_entries();
    let (mut room, mut blocks) = (used.clone(), Vec::<(u64, u64)>::new());
    let (mut table, mut cursor, mut follow) = (0..0, from, None);
    loop {
        let lacking = |i: &u64| !blocks.iter().any(|(at, _)| at == i);
        // Every used cluster asks for its block, those of the new structures among them.
        let wanted = follow.filter(lacking).or_else(|| room.0.iter().map(index).find(lacking));
        if let Some(wanted) = wanted {
            let cluster = (cursor..).find(|cluster| !room.0.contains(cluster)).unwrap();
            room.0.insert(cluster);
            blocks.push((wanted, cluster));
            (cursor, follow) = (cluster + 1, Some(index(&cluster)));
            continue;
        }
        let entries = blocks.iter().map(|(at, _)| at + 1).max().unwrap_or(1);
        let needed = (1..).find(|n| n * geometry.cluster_bytes() >= entries * 8).unwrap();
        if needed <= table.end - table.start {
            blocks.sort_unstable();
            return (blocks, table.start, needed);
        }
        table.clone().for_each(|cluster| assert!(room.0.remove(&cluster)));
        let is_free = |first: &u64| (*first..first + needed).all(|cluster| !room.0.contains(&cluster));
        let first = (cursor..).find(is_free).unwrap();
        table = first..first + needed;
        room.0.extend(table.clone());
        follow = None;
    }
}

#[test]
fn scattered_plans_are_those_of_the_slow_oracle() {
    let (mut chained, mut moved) = (0, 0);
    for geometry in geometries() {
        for seed in 0..8 {
            let used = some_used(&geometry, seed);
            // Behind everything, too, as where any pointer may be broken.
            for from in [0, *used.0.last().unwrap() + 1] {
                let mut room = used.clone();
                let mut plan = Plan::new(geometry, from);
                used.0.iter().for_each(|cluster| plan.need_for(*cluster, 1).unwrap());
                let needed = plan.missing.len();
                plan.place_all(&mut room).unwrap();
                let blocks: Vec<_> = plan.blocks().collect();
                let (slow_blocks, table, clusters) = slow_plan(&geometry, &used, from);
                assert_eq!(blocks, slow_blocks, "{geometry:?} seed {seed}");
                let shown = (plan.table_cluster, plan.table_clusters());
                assert_eq!(shown, (table, clusters), "{geometry:?} seed {seed}");
                check(&plan, &used, &room);
                chained += usize::from(blocks.len() > needed);
                moved += usize::from(clusters > 1);
            }
        }
    }
    assert!(chained > 100 && moved > 3, "{chained} {moved}");
}

/// What any plan has to be, whatever its rules.
fn check(plan: &Plan, before: &Listed, after: &Listed) {
    let geometry = &plan.geometry;
    let mut new: Vec<u64> = plan.blocks().map(|(_, cluster)| cluster).collect();
    new.extend(plan.table_cluster..plan.table_cluster + plan.table_clusters);
    let distinct: BTreeSet<u64> = new.iter().copied().collect();
    assert_eq!(distinct.len(), new.len(), "one owner each");
    assert!(distinct.is_disjoint(&before.0), "free before");
    assert_eq!(&distinct | &before.0, after.0, "counted");
    let counting: BTreeSet<u64> = after.0.iter().map(|c| geometry.refcount_table_index(*c)).collect();
    let there: BTreeSet<u64> = plan.blocks().map(|(index, _)| index).collect();
    assert_eq!(counting, there, "a block for everything, and none for nothing");
    let entries = plan.table_entries().unwrap();
    assert_eq!(entries.len() as u64 * 8, plan.table_clusters << geometry.cluster_bits);
    for (index, entry) in (0..).zip(&entries) {
        let cluster = plan.blocks().find(|(at, _)| *at == index).map_or(0, |(_, cluster)| cluster);
        assert_eq!(*entry, cluster << geometry.cluster_bits);
    }
}

#[test]
fn what_is_asked_for_later_is_placed_behind() {
    let g = geometry(9, 6);
    let mut room = Listed((0..60).collect());
    let mut plan = Plan::new(g, 0);
    plan.need_for(0, 60).unwrap();
    plan.place_all(&mut room).unwrap();
    let first: Vec<_> = plan.blocks().collect();
    assert_eq!((first.as_slice(), plan.table_cluster), (&[(0, 60)][..], 61));
    // A reference past the end of the file, which the file has grown over.
    plan.need_for(64 * 70, 1).unwrap();
    plan.place_all(&mut room).unwrap();
    assert_eq!(plan.blocks().collect::<Vec<_>>(), [(0, 60), (1, 65), (70, 62)]);
    assert_eq!((plan.table_cluster, plan.table_clusters()), (63, 2), "a new place, in block 1 as well");
}

#[test]
fn tables_past_their_limit_are_refused() {
    for g in geometries() {
        let mut plan = Plan::new(g, 0);
        plan.need(MAX_BLOCKS - 1).unwrap();
        assert_eq!(plan.need(MAX_BLOCKS).unwrap_err().kind(), ErrorKind::TooLarge);
        let most = MAX_BLOCKS * g.refcount_block_entries();
        assert!(Row::new(&g, most, 0, MAX_BLOCKS - 1, 1).is_err());
        assert!(Row::new(&g, 1, 0, 0, MAX_BLOCKS + 1).is_err());
        assert!(Row::new(&g, 1 << 47, 0, 0, 1).is_err());
    }
}

/// Whether blocks and table count everything up to the end of what follows them.
fn suffices(g: &Geometry, start: u64, more: u64, first_block: u64, row: Row) -> bool {
    let last = start + row.blocks + row.table_clusters + more - 1;
    let needed = last / g.refcount_block_entries() + 1;
    needed <= first_block + row.blocks && needed * 8 <= row.table_clusters * g.cluster_bytes()
}

#[test]
fn rows_are_the_smallest_that_suffice() {
    let mut self_counting = 0;
    for g in geometries() {
        let per_block = g.refcount_block_entries();
        let per_table_cluster = g.cluster_bytes() / 8;
        let starts = [0, 1, per_table_cluster - 1, per_table_cluster, 70 * per_table_cluster];
        for start_block in starts.into_iter().filter(|block| *block < MAX_BLOCKS / 2) {
            for (before, more) in [(0, 0), (3, 1), (0, per_block - 2), (0, 5 * per_block + 7)] {
                // Where a table has become too short, and where the blocks up to `start` are there.
                for first_block in [start_block, start_block + 1] {
                    let start = first_block * per_block - before.min(first_block * per_block);
                    let least = start_block + 2;
                    let row = Row::new(&g, start, more, first_block, least).unwrap();
                    let least_clusters = (least * 8).div_ceil(g.cluster_bytes());
                    let all = (least_clusters..).flat_map(|table_clusters| {
                        (0..=row.blocks).map(move |blocks| Row { blocks, table_clusters })
                    });
                    let slow = all
                        .take_while(|r| r.table_clusters <= row.table_clusters)
                        .find(|r| suffices(&g, start, more, first_block, *r));
                    assert_eq!(slow, Some(row), "{g:?} start {start} more {more}");
                    self_counting += u32::from(row.blocks > 1 && more == 0);
                }
            }
        }
    }
    assert!(self_counting > 0);
}
