//! Tests of the alerts and dashboards, against the programs' metrics and a real Prometheus.

mod causes;
mod dashboards;
mod observed;
mod pictures;
mod rules;
