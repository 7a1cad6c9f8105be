//! stub
use crate::state::ClusterState;
use serde_json::Value;
/// stub
pub fn all(_state: &ClusterState) -> Vec<Value> {
    Vec::new()
}
