//! Tests of the alerts and dashboards, against the programs' metrics and a real Prometheus.

mod alarms;
mod causes;
mod dashboards;
mod observed;
mod pictures;
mod quiet;
mod replay;
mod rules;
mod sizes;
mod stated;
