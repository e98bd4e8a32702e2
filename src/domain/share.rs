//! The fair share of a tenant in a number of slots that tenants use together.
//!
//! Slots cannot be taken back from slow receivers, so the last eighth of the slots is a reserve.
//! With `n` active tenants the share of each is one `n`-th of the other slots. A tenant below its
//! share has precedence over tenants at or above it, and only it may use the reserve. Of the
//! reserve a tenant must leave more slots free than it holds, so several slow tenants cannot use it
//! up. These rules apply only while there are several tenants.

/// One in this many slots belongs to the reserve.
const RESERVE_PART: usize = 8;

/// A number of slots, and the number of tenants that use them now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSlots {
    pub limit: usize,
    pub taken: usize,
    /// Tenants that hold slots or wait for one. At least two count: the next one may come any time.
    pub active: usize,
}

impl SharedSlots {
    #[must_use]
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.taken)
    }

    /// The fair share of each tenant, at least 1.
    #[must_use]
    pub fn share(&self) -> usize {
        ((self.limit - self.reserve()) / self.active.max(2)).max(1)
    }

    fn reserve(&self) -> usize {
        self.limit / RESERVE_PART
    }

    /// Free slots outside the reserve. Any tenant may take them.
    #[must_use]
    pub fn beyond_reserve(&self) -> usize {
        self.free().saturating_sub(self.reserve())
    }

    /// How many more slots a tenant may take that holds this many.
    #[must_use]
    pub fn allowance(&self, held: usize) -> usize {
        let below_share = self.share().saturating_sub(held);
        let of_reserve = self.free().saturating_sub(held).div_ceil(2);
        self.beyond_reserve().max(below_share.min(of_reserve))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_eighth_is_for_tenants_below_their_share() {
        let slots = |taken, active| SharedSlots { limit: 128, taken, active };
        assert_eq!(slots(0, 1).allowance(0), 112, "a lone tenant leaves the reserve");
        assert_eq!(slots(111, 1).allowance(111), 1);
        assert_eq!(slots(112, 1).allowance(112), 0);
        assert_eq!(slots(112, 2).allowance(0), 8, "half of the reserve");
        assert_eq!(slots(120, 2).allowance(8), 0, "as many slots are free as it holds");
        assert_eq!(slots(127, 9).allowance(0), 1, "the last slot");
        assert_eq!(slots(128, 9).allowance(0), 0);
        assert_eq!(slots(120, 16).allowance(8), 0, "above its share of 7");
        assert_eq!(slots(500, 2).allowance(0), 0, "the limit was lowered");
        assert_eq!(SharedSlots { limit: 1, taken: 0, active: 5 }.allowance(0), 1);
    }

    #[test]
    fn next_tenant_finds_a_slot_after_slow_ones() {
        // Slow tenants come one after the other, and each takes all that it may.
        let (mut taken, mut tenants) = (0, 0);
        loop {
            let slots = SharedSlots { limit: 1_024, taken, active: tenants + 1 };
            let allowance = slots.allowance(0);
            if allowance == 0 {
                break;
            }
            (taken, tenants) = (taken + allowance, tenants + 1);
        }
        assert_eq!((taken, tenants), (1_024, 9));
    }
}
