//! Tests of the fair queue, with plain lists as the model.

use proptest::prelude::*;

use super::*;

type Queue = FairQueue<u8, (u8, u32)>;

fn take_all(queue: &mut Queue) -> Vec<(u8, u32)> {
    std::iter::from_fn(|| queue.take_first()).collect()
}

#[test]
fn parties_take_turns_and_keep_their_order() {
    let mut queue = Queue::default();
    (0..3).for_each(|number| queue.push(&1, (1, number), 10));
    (0..2).for_each(|number| queue.push(&2, (2, number), 10));
    assert_eq!(queue.len(), 5);
    assert_eq!(take_all(&mut queue), [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]);
    assert!(queue.is_empty());
}

#[test]
fn single_item_passes_a_long_backlog() {
    let mut queue = Queue::default();
    (0..100).for_each(|number| queue.push(&1, (1, number), 8_000));
    assert_eq!(queue.take_first(), Some((1, 0)));
    queue.push(&2, (2, 0), 8);
    assert_eq!(queue.take_first(), Some((2, 0)));
}

#[test]
fn cheap_items_get_the_cost_of_one_large_item() {
    let mut queue = Queue::default();
    (0..4).for_each(|number| queue.push(&1, (1, number), 100));
    (0..100).for_each(|number| queue.push(&2, (2, number), 10));
    let first: Vec<_> = take_all(&mut queue).into_iter().take(44).collect();
    let large = first.iter().filter(|(party, _)| *party == 1).count();
    assert!((4..=5).contains(&large), "{large} large items beside 40 small ones");
}

#[test]
fn idle_party_gets_no_credit() {
    let mut queue = Queue::default();
    (0..1_000).for_each(|number| queue.push(&1, (1, number), 1));
    assert_eq!((0..500).filter_map(|_| queue.take_first()).count(), 500);
    (0..500).for_each(|number| queue.push(&2, (2, number), 1));
    let next: Vec<_> = (0..100).filter_map(|_| queue.take_first()).collect();
    let late = next.iter().filter(|(party, _)| *party == 2).count();
    assert!((49..=51).contains(&late), "the late party got {late} of 100");
}

#[test]
fn idle_parties_are_forgotten() {
    let mut queue = Queue::default();
    queue.push(&255, (255, 0), 1_000_000);
    queue.push(&255, (255, 1), 1);
    for round in 0..4 {
        for party in 0..200 {
            queue.push(&party, (party, round), 8);
            assert!(queue.take_first().is_some());
        }
    }
    assert!(queue.parties.len() <= IDLE_PARTIES_KEPT + 3, "{} parties", queue.parties.len());
}

#[test]
fn new_parties_do_not_starve_a_large_item() {
    let mut queue: FairQueue<u32, u32> = FairQueue::default();
    queue.push(&0, 0, 8_000);
    queue.push(&0, 0, 8_000);
    assert_eq!(queue.take_first(), Some(0));
    for party in 1..10_000 {
        queue.push(&party, party, 8);
        if queue.take_first() == Some(0) {
            return;
        }
    }
    panic!("9,999 parties passed it");
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, u64),
    Take,
    TakeSomeAndPutBack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_u8, 1..200_u64).prop_map(|(party, cost)| Step::Push(party, cost)),
        2 => Just(Step::Take),
        1 => (1..6_usize).prop_map(Step::TakeSomeAndPutBack),
    ]
}

proptest! {
    /// Nothing is lost or repeated, and each party's items keep their order, also when a group
    /// returns.
    #[test]
    fn queue_agrees_with_a_list_per_party(steps in prop::collection::vec(step(), 1..200)) {
        let mut queue: FairQueue<u8, (u8, u32, u64)> = FairQueue::default();
        let mut model: HashMap<u8, VecDeque<u32>> = HashMap::new();
        for (number, step) in (0_u32..).zip(steps) {
            match step {
                Step::Push(party, cost) => {
                    queue.push(&party, (party, number, cost), cost);
                    model.entry(party).or_default().push_back(number);
                }
                Step::Take => {
                    let first = queue.first().copied();
                    let taken = queue.take_first();
                    prop_assert_eq!(first, taken);
                    let Some((party, number, _)) = taken else {
                        prop_assert!(model.values().all(VecDeque::is_empty));
                        continue;
                    };
                    prop_assert_eq!(model.get_mut(&party).and_then(VecDeque::pop_front), Some(number));
                }
                Step::TakeSomeAndPutBack(count) => {
                    let group: Vec<_> = (0..count).filter_map(|_| queue.take_first()).collect();
                    for item in group.into_iter().rev() {
                        queue.put_back(&item.0, item, item.2);
                    }
                }
            }
            prop_assert_eq!(queue.len(), model.values().map(VecDeque::len).sum::<usize>());
        }
    }

    /// While all parties have a backlog, their costs differ by at most two items.
    #[test]
    fn backlogged_parties_get_equal_cost(costs in prop::collection::vec(1..100_u64, 4..5)) {
        let mut queue: FairQueue<u8, u8> = FairQueue::default();
        for (party, cost) in (0_u8..).zip(&costs) {
            (0..2_000).for_each(|_| queue.push(&party, party, *cost));
        }
        let mut served = [0_u64; 4];
        while served.iter().sum::<u64>() < 1_000 {
            let party = usize::from(queue.take_first().unwrap());
            served[party] += costs[party];
        }
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        prop_assert!(most - least <= 2 * costs.iter().max().unwrap(), "{served:?} for {costs:?}");
    }
}
