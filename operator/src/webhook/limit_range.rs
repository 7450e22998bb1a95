//! Refuses pods whose sidecar a `LimitRange` of the namespace would refuse.
//!
//! The API server would refuse the pod too, but its sentence names no container, and the author of
//! the pod cannot find the amounts in their manifest.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

use super::annotations::{
    CPU_LIMIT_ANNOTATION, CPU_REQUEST_ANNOTATION, MEMORY_LIMIT_ANNOTATION,
    MEMORY_REQUEST_ANNOTATION, Settings,
};
use super::quantity::{Quantity, Resource};
use super::quoted;
use super::reason::{Reason, Refusal};
use crate::state::limit_ranges::ContainerLimit;

/// Compares the sidecar's resources with what `LimitRanges` demand of each container.
///
/// # Errors
/// Names the `LimitRange`, the rule, the sidecar's amount, and the annotation that sets it.
pub fn check(limits: &[ContainerLimit], settings: &Settings) -> Result<(), Refusal> {
    for ContainerLimit { name, item } in limits {
        for (resource, range, request_annotation, limit_annotation) in [
            (Resource::Cpu, &settings.cpu, CPU_REQUEST_ANNOTATION, CPU_LIMIT_ANNOTATION),
            (
                Resource::Memory,
                &settings.memory,
                MEMORY_REQUEST_ANNOTATION,
                MEMORY_LIMIT_ANNOTATION,
            ),
        ] {
            let what = resource.name();
            let broken = if let Some(min) = demand(item.min.as_ref(), resource)
                && min.exceeds(&range.request)
            {
                let sidecar = format!("the sidecar requests {}", range.request.as_str());
                Some((format!("at least {} of {what}", min.as_str()), sidecar, request_annotation))
            } else if let Some(max) = demand(item.max.as_ref(), resource)
                && range.limit.exceeds(&max)
            {
                let sidecar = format!("the limit of the sidecar is {}", range.limit.as_str());
                Some((format!("at most {} of {what}", max.as_str()), sidecar, limit_annotation))
            } else if let Some(ratio) = ratio(item.max_limit_request_ratio.as_ref(), resource)
                && range.limit.exceeds_multiple(&range.request, &ratio)
            {
                let sidecar = format!(
                    "the sidecar requests {} and its limit is {}",
                    range.request.as_str(),
                    range.limit.as_str()
                );
                let rule =
                    format!("a limit of {what} of at most {} times the request", ratio.as_str());
                Some((rule, sidecar, limit_annotation))
            } else {
                None
            };
            if let Some((rule, sidecar, annotation)) = broken {
                return Err(Refusal::new(
                    Reason::LimitRange,
                    format!(
                        "the LimitRange {} demands {rule} for each container, and {sidecar}; set the sidecar's \
                         with the annotation {annotation}",
                        quoted(name)
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Returns a demand that is there and valid. What is invalid is for the API server to reject.
fn demand(amounts: Option<&BTreeMap<String, Written>>, resource: Resource) -> Option<Quantity> {
    Quantity::parse(&amounts?.get(resource.name())?.0, resource).ok()
}

/// Returns a ratio, which has the notation of cores.
fn ratio(ratios: Option<&BTreeMap<String, Written>>, resource: Resource) -> Option<Quantity> {
    Quantity::parse(&ratios?.get(resource.name())?.0, Resource::Cpu).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::annotations::settings;
    use super::super::samples;
    use super::*;

    fn sentence(item: &Value, annotations: &[(&str, &str)]) -> Option<String> {
        let mut item = item.clone();
        item["type"] = "Container".into();
        let limit = ContainerLimit {
            name: "defaults".to_owned(),
            item: serde_json::from_value(item).unwrap(),
        };
        let annotations = samples::annotations(annotations);
        let settings = settings(&annotations, "kms", &samples::defaults()).unwrap();
        check(&[limit], &settings).err().map(|refusal| {
            assert_eq!(refusal.reason, Reason::LimitRange);
            refusal.sentence
        })
    }

    #[test]
    fn a_sidecar_that_a_limit_range_would_refuse_is_refused_with_the_rule_and_the_annotation() {
        let table: [(Value, &str, &str, (&str, &str)); 5] = [
            (
                json!({"min": {"cpu": "50m"}}),
                "demands at least 50m of cpu for each container, and the sidecar requests 10m",
                "twofactor.fountainai.io/cpu-request",
                (CPU_REQUEST_ANNOTATION, "50m"),
            ),
            (
                json!({"min": {"memory": "64Mi"}}),
                "demands at least 64Mi of memory for each container, and the sidecar requests 16Mi",
                "twofactor.fountainai.io/memory-request",
                (MEMORY_REQUEST_ANNOTATION, "64Mi"),
            ),
            (
                json!({"max": {"cpu": "0.2"}}),
                "demands at most 0.2 of cpu for each container, and the limit of the sidecar is 500m",
                "twofactor.fountainai.io/cpu-limit",
                (CPU_LIMIT_ANNOTATION, "200m"),
            ),
            (
                json!({"max": {"memory": "32Mi"}}),
                "demands at most 32Mi of memory for each container, and the limit of the sidecar is 64Mi",
                "twofactor.fountainai.io/memory-limit",
                (MEMORY_LIMIT_ANNOTATION, "32Mi"),
            ),
            (
                json!({"maxLimitRequestRatio": {"cpu": "10"}}),
                "demands a limit of cpu of at most 10 times the request for each container, and the sidecar requests \
                 10m and its limit is 500m",
                "twofactor.fountainai.io/cpu-limit",
                (CPU_LIMIT_ANNOTATION, "100m"),
            ),
        ];
        for (item, rule, annotation, remedy) in table {
            let sentence = sentence(&item, &[]).unwrap();
            assert!(sentence.starts_with("the LimitRange \"defaults\" demands"), "{sentence}");
            assert!(sentence.contains(rule) && sentence.ends_with(annotation), "{sentence}");
            assert_eq!(super::tests::sentence(&item, &[remedy]), None);
        }
    }

    #[test]
    fn what_a_limit_range_allows_or_says_in_an_unknown_way_is_admitted() {
        for item in [
            json!({"min": {"cpu": "10m", "memory": "16Mi"}, "max": {"cpu": "500m", "memory": "64Mi"}}),
            json!({"maxLimitRequestRatio": {"cpu": "50", "memory": "4"}}),
            json!({"default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}),
            json!({"min": {"cpu": "much", "nvidia.com/gpu": "1"}}),
            json!({}),
        ] {
            assert_eq!(sentence(&item, &[]), None, "{item}");
        }
    }
}
