//! Refuses pods whose pod-level resources leave no space for the sidecar's requests.
//!
//! The API server rejects a pod whose containers request more than the pod as a whole, and says so
//! about a sum that the author of the pod cannot find in their manifest, because the sidecar is
//! part of it.

use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

use super::annotations::{CPU_REQUEST_ANNOTATION, MEMORY_REQUEST_ANNOTATION, Settings};
use super::quantity::{Quantity, Resource};
use super::reason::{Reason, Refusal};

/// Compares the requests of the pod with those of its containers and of the sidecar.
///
/// # Errors
/// Names the resource, the sum and the ways out. A pod that the API server would reject without the
/// sidecar as well is left to the API server.
pub fn check(spec: &PodSpec, settings: &Settings) -> Result<(), Refusal> {
    for (resource, sidecar, annotation) in [
        (Resource::Cpu, &settings.cpu.request, CPU_REQUEST_ANNOTATION),
        (Resource::Memory, &settings.memory.request, MEMORY_REQUEST_ANNOTATION),
    ] {
        let Some(of_pod) = request(spec.resources.as_ref(), resource) else { continue };
        let containers = aggregate(spec, resource);
        let needed = containers.plus(sidecar);
        if needed.exceeds(&of_pod) && !containers.exceeds(&of_pod) {
            let name = resource.name();
            return Err(Refusal::new(
                Reason::PodResources,
                format!(
                    "spec.resources.requests[{name}]: must be at least {}, because the containers request {} \
                     and the sidecar {}; it is {}. Raise it (Kubernetes fills in the sum of the containers if \
                     only limits are written), or lower the sidecar's request with the annotation {annotation}",
                    needed.as_str(),
                    containers.as_str(),
                    sidecar.as_str(),
                    of_pod.as_str(),
                ),
            ));
        }
    }
    Ok(())
}

/// Returns the largest sum that the containers request at any moment, as Kubernetes computes it: an
/// init container runs beside those before it that keep running.
fn aggregate(spec: &PodSpec, resource: Resource) -> Quantity {
    let mut app = Quantity::zero();
    for container in &spec.containers {
        app = app.plus(&of_container(container.resources.as_ref(), resource));
    }
    let (mut restartable, mut largest) = (Quantity::zero(), Quantity::zero());
    for container in spec.init_containers.iter().flatten() {
        let sum = restartable.plus(&of_container(container.resources.as_ref(), resource));
        if sum.exceeds(&largest) {
            largest = sum.clone();
        }
        if container.restart_policy.as_deref() == Some("Always") {
            restartable = sum;
        }
    }
    let app = app.plus(&restartable);
    if largest.exceeds(&app) { largest } else { app }
}

fn of_container(resources: Option<&ResourceRequirements>, resource: Resource) -> Quantity {
    request(resources, resource).unwrap_or_else(Quantity::zero)
}

/// Returns a request that is there and valid. What is invalid is for the API server to reject.
fn request(resources: Option<&ResourceRequirements>, resource: Resource) -> Option<Quantity> {
    let written = resources?.requests.as_ref()?.get(resource.name())?;
    Quantity::parse(&written.0, resource).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::annotations::settings;
    use super::super::samples;
    use super::*;

    /// The sentence about a pod of these pod-level resources, app containers and init containers.
    fn sentence(spec: &Value, annotations: &[(&str, &str)]) -> Option<String> {
        let spec: PodSpec = serde_json::from_value(spec.clone()).unwrap();
        let annotations: BTreeMap<_, _> = samples::annotations(annotations);
        let settings = settings(&annotations, "kms", &samples::defaults()).unwrap();
        check(&spec, &settings).err().map(|refusal| {
            assert_eq!(refusal.reason, Reason::PodResources);
            refusal.sentence
        })
    }

    fn container(cpu: &str, memory: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn keeps_running(cpu: &str, memory: &str) -> Value {
        let mut container = container(cpu, memory);
        container["restartPolicy"] = "Always".into();
        container
    }

    fn pod(cpu: &str, memory: &str, containers: &Value, init: &Value) -> Value {
        json!({
            "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": "2", "memory": "2Gi"}},
            "containers": containers,
            "initContainers": init,
        })
    }

    #[test]
    fn a_pod_without_space_for_the_sidecar_is_refused_with_the_sum_and_the_ways_out() {
        let tight = pod("100m", "128Mi", &json!([container("100m", "64Mi")]), &json!([]));
        assert_eq!(
            sentence(&tight, &[]).unwrap(),
            "spec.resources.requests[cpu]: must be at least 110m, because the containers request 100m and the \
             sidecar 10m; it is 100m. Raise it (Kubernetes fills in the sum of the containers if only limits are \
             written), or lower the sidecar's request with the annotation twofactor.fountainai.io/cpu-request"
        );
        assert_eq!(sentence(&tight, &[(CPU_REQUEST_ANNOTATION, "0")]), None);
        let memory = pod("1", "120M", &json!([container("100m", "100Mi")]), &json!([]));
        let sentence = sentence(&memory, &[]).unwrap();
        assert!(
            sentence.starts_with(
                "spec.resources.requests[memory]: must be at least 116Mi, because the containers request 100Mi and \
                 the sidecar 16Mi; it is 120M."
            ) && sentence.ends_with("the annotation twofactor.fountainai.io/memory-request"),
            "{sentence}"
        );
    }

    #[test]
    fn the_request_of_the_pod_may_be_used_up_exactly() {
        let two = json!([container("0.04", "64Mi"), container("50m", "64Mi")]);
        assert_eq!(sentence(&pod("100m", "144Mi", &two, &json!([])), &[]), None);
        assert!(sentence(&pod("99m", "144Mi", &two, &json!([])), &[]).is_some());
        assert!(sentence(&pod("100m", "150994943", &two, &json!([])), &[]).is_some());
    }

    #[test]
    fn init_containers_count_as_kubernetes_counts_them() {
        let app = json!([container("20m", "16Mi")]);
        // The largest init container runs beside the sidecar and one that keeps running.
        let init = json!([keeps_running("30m", "1Mi"), container("50m", "1Mi")]);
        assert_eq!(sentence(&pod("90m", "1Gi", &app, &init), &[]), None);
        assert!(sentence(&pod("89m", "1Gi", &app, &init), &[]).is_some());
        // One that keeps running after it does not run beside it.
        let init = json!([container("50m", "1Mi"), keeps_running("30m", "1Mi")]);
        assert_eq!(sentence(&pod("60m", "1Gi", &app, &init), &[]), None);
        assert!(sentence(&pod("59m", "1Gi", &app, &init), &[]).is_some());
    }

    #[test]
    fn what_the_sidecar_does_not_change_is_left_to_the_api_server() {
        let app = json!([container("100m", "64Mi")]);
        let already_too_much = pod("50m", "1Gi", &app, &json!([]));
        let unreadable = pod("much", "1Gi", &app, &json!([]));
        for spec in [already_too_much, unreadable, json!({"containers": app})] {
            assert_eq!(sentence(&spec, &[]), None, "{spec}");
        }
        let only_one_resource =
            json!({"resources": {"requests": {"memory": "1Gi"}}, "containers": app});
        assert_eq!(sentence(&only_one_resource, &[]), None);
    }

    #[test]
    fn amounts_beyond_every_machine_do_not_overflow() {
        let huge = container("999999999999999999999", "9999999999999999999Ei");
        let spec = pod("1", "1Gi", &json!([huge, huge, huge]), &json!([huge]));
        assert_eq!(sentence(&spec, &[]), None);
    }
}
