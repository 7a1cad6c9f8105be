//! Tables of rules in a [`World`].

use netpath::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, CmpOp, CtKey, Expr, Family, Hook, Policy, Rule, Ruleset,
    Table, Verdict,
};
use netpath::model::{NsKey, Section};

use crate::world::World;

/// A table of IPv4 with one chain.
pub fn table(chain: Chain) -> Table {
    Table {
        backend: Backend::Nft,
        family: Family::Ip,
        name: "t".to_owned(),
        dormant: false,
        chains: [(chain.name.clone(), chain)].into(),
        chains_complete: true,
        sets: [].into(),
        sets_complete: true,
        flowtables: [].into(),
        objects: Vec::new(),
        comment: None,
    }
}

/// A netdev table with one rule, at eth0 where the hook is a device's.
pub fn chain(hook: Hook, exprs: Vec<Expr>) -> Table {
    let at_device = matches!(hook, Hook::Ingress | Hook::Egress);
    let rule = Rule {
        handle: 2,
        exprs,
        comment: None,
    };
    let chain = Chain {
        name: "c".to_owned(),
        handle: 1,
        base: Some(BaseChain {
            hook,
            priority: 0,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
            devices: at_device.then(|| "eth0".to_owned()).into_iter().collect(),
            counters: None,
        }),
        rules: Section::Known(vec![rule]),
        sieved: None,
        comment: None,
        bound: false,
    };
    Table {
        family: Family::Netdev,
        ..table(chain)
    }
}

/// A rule that drops packets of this state alone (NF_CT_STATE_BIT).
pub fn drops_state(bit: u32) -> Vec<Expr> {
    vec![
        Expr::Ct {
            key: CtKey::State,
            dir: None,
            dreg: 8,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 8,
            data: bit.to_le_bytes().to_vec(),
        },
        Expr::Verdict(Verdict::Drop),
    ]
}

pub fn with(world: &mut World, ns: &NsKey, table: Table) {
    world.get(ns).nft = Section::Known(Ruleset {
        generation: Some(1),
        tables: vec![table],
    });
}
