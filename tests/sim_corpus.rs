#![cfg(feature = "sim")]
//! The fuzzer's corpus, played without a fuzzer: orders that reach different code. Scenario 41.

#[path = "sim/model.rs"]
mod model;
#[path = "sim/schedule.rs"]
mod schedule;

use std::fs;
use std::path::Path;

use ioqueue::sim;
use schedule::Schedule;

#[test]
fn the_schedules_of_the_fuzzers_corpus_keep_the_rules() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/orders");
    let Ok(files) = fs::read_dir(&folder) else {
        println!("SKIPPED: the package comes without the corpus of its fuzzer");
        return;
    };
    let mut played = 0;
    for file in files {
        let path = file.unwrap().path();
        let Some(schedule) = Schedule::read(&fs::read(&path).unwrap()) else { continue };
        if let Some(failure) = sim::find_failure([0], |_| schedule.play()) {
            panic!("{}: {}", path.display(), failure.message);
        }
        played += 1;
    }
    assert!(played > 0, "there is nothing in {}", folder.display());
}
