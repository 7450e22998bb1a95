//! Tests of the Helm chart.

mod chart;
mod readme;
