//! A plan as a picture.
use freestone_engine::plan::PlanExplanation;
/// x
pub fn svg(_: &PlanExplanation) -> String {
    String::new()
}
