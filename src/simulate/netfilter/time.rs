//! Rules that ask for the time: that of the node when its facts were read, give or take a few seconds.
//!
//! Source: `time_mt()`, net/netfilter/xt_time.c; `nft_meta_get_eval_time()`, net/netfilter/nft_meta.c (v6.12).

use super::bits::{Bits, Tri};
use super::header::Load;
use super::machine::Eval;
use crate::model::netfilter::MetaKey;
use crate::model::xtables::TimeMatch;

const DAY: u64 = 86_400;
/// XT_TIME_LOCAL_TZ
pub(super) const KERNEL_ZONE: u8 = 1;
/// XT_TIME_CONTIGUOUS
const CONTIGUOUS: u8 = 2;
/// XT_TIME_ALL_MONTHDAYS
const ALL_MONTHDAYS: u32 = 0xffff_fffe;
/// NFT_META_TIME_NS
pub(super) const NFT_NANOSECONDS: u32 = 30;
/// NFT_META_TIME_DAY
pub(super) const NFT_DAY: u32 = 31;
/// NFT_META_TIME_HOUR
pub(super) const NFT_HOUR: u32 = 32;
/// What is assumed where a rule asks by the kernel's own time zone: no file tells it.
pub(super) const ZONE: &str = "the kernel's own time zone is UTC, as systemd leaves it";

/// What is assumed wherever a rule asks: a file may be old.
pub(super) const READING: &str = "the packet passes at the time at which the node was read";
/// Seconds between reading and packet: an answer that differs so near is none.
const SOON: u64 = 5;

/// Whether a meta key is a time.
pub(super) fn is_one(key: MetaKey) -> bool {
    matches!(key, MetaKey::Other(NFT_NANOSECONDS | NFT_DAY | NFT_HOUR))
}

/// Seconds since 1970; `None`: when the facts were read is not known.
fn now(eval: &Eval<'_, '_>) -> Option<u64> {
    let node = eval.cx.topology.nodes.get(&eval.at.ns.node)?;
    Some(node.taken_at).filter(|now| *now > 0)
}

fn lacking() -> String {
    "the time is not known".to_owned()
}

/// Days since 1970, and seconds of the day.
fn split(now: u64) -> (u64, u64) {
    (now / DAY, now % DAY)
}

/// The `time` match.
pub(super) fn holds(eval: &Eval<'_, '_>, asked: &TimeMatch) -> Tri {
    let Some(now) = now(eval) else {
        return Tri::Unknown(lacking());
    };
    let answer = within(now, asked);
    let mut near = now.saturating_sub(SOON)..=now.saturating_add(SOON);
    let clear = near.all(|now| within(now, asked) == answer);
    Tri::from_option(clear.then_some(answer), || {
        "the time is that of a boundary".to_owned()
    })
}

fn within(now: u64, asked: &TimeMatch) -> bool {
    if !(u64::from(asked.date_start)..=u64::from(asked.date_stop)).contains(&now) {
        return false;
    }
    let (mut day, second) = split(now);
    let (start, stop) = (u64::from(asked.day_start), u64::from(asked.day_stop));
    if start < stop {
        if !(start..=stop).contains(&second) {
            return false;
        }
    } else {
        if second < start && second > stop {
            return false;
        }
        // Behind midnight it is still the day before.
        if asked.flags & CONTIGUOUS != 0 && second <= stop {
            day = day.saturating_sub(1);
        }
    }
    let bit = |number: u64| 1_u32.checked_shl(u32::try_from(number).unwrap_or(32));
    let weekday = match weekday(day) {
        0 => 7,
        other => other,
    };
    if bit(weekday).unwrap_or(0) & u32::from(asked.weekdays) == 0 {
        return false;
    }
    asked.monthdays == ALL_MONTHDAYS || bit(monthday(day)).unwrap_or(0) & asked.monthdays != 0
}

/// 0 is Sunday; 1970 began on a Thursday.
fn weekday(day: u64) -> u64 {
    (day + 4) % 7
}

/// Day of the month, from 1 on, of a day since 1970 (Gregorian, by eras of 400 years that begin in March).
fn monthday(day: u64) -> u64 {
    let day = (day + 719_468) % 146_097;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    of_year - (153 * month + 2) / 5 + 1
}

/// What `meta time`, `meta day` and `meta hour` load.
pub(super) fn load(eval: &Eval<'_, '_>, key: u32) -> Load {
    let Some(now) = now(eval) else {
        return Load::Unknown(lacking());
    };
    let (from, to) = (now.saturating_sub(SOON), now.saturating_add(SOON));
    let ((first, start), (last, stop)) = (split(from), split(to));
    let nanoseconds = |seconds: u64| seconds.saturating_mul(1_000_000_000);
    Load::Value(match key {
        NFT_DAY if first != last => Bits::unknown(1),
        NFT_DAY => Bits::known([u8::try_from(weekday(first)).unwrap_or(0)]),
        NFT_HOUR if first != last => Bits::unknown(4),
        NFT_HOUR => Bits::host_between(start, stop, 4),
        _ => Bits::host_between(nanoseconds(from), nanoseconds(to), 8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: TimeMatch = TimeMatch {
        date_start: 0,
        date_stop: u32::MAX,
        day_start: 0,
        day_stop: 86_399,
        monthdays: ALL_MONTHDAYS,
        weekdays: 0xfe,
        flags: 0,
    };
    /// Thursday, 29 February 2024, 23:30.
    const LEAP: u64 = 1_709_249_400;

    #[test]
    fn days_are_those_of_the_calendar() {
        // `date -u -d @N +%d`
        for (now, wanted) in [
            (0, 1),
            (LEAP, 29),
            (LEAP + 3600, 1),
            (951_782_400, 29),
            (4_107_542_400, 1),
            (1_735_689_599, 31),
        ] {
            assert_eq!(monthday(now / DAY), wanted, "{now}");
        }
        assert_eq!(weekday(LEAP / DAY), 4);
    }

    #[test]
    fn stretches_may_pass_midnight() {
        let night = TimeMatch {
            day_start: 23 * 3600,
            day_stop: 3600,
            weekdays: 1 << 4,
            ..ALWAYS
        };
        assert!(within(LEAP, &ALWAYS) && within(LEAP, &night));
        // Half past midnight is Friday, unless the stretch is one.
        assert!(!within(LEAP + 3600, &night));
        let one = TimeMatch {
            flags: CONTIGUOUS,
            ..night
        };
        assert!(within(LEAP + 3600, &one) && !within(LEAP + 3 * 3600, &one));
        let first = TimeMatch {
            monthdays: 1 << 1,
            ..ALWAYS
        };
        assert!(!within(LEAP, &first) && within(LEAP + 3600, &first));
        let past = TimeMatch {
            date_stop: 1_709_249_399,
            ..ALWAYS
        };
        assert!(!within(LEAP, &past));
    }
}
