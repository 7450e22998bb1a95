// The definitions of cert-manager's objects, against which the tests check those of the chart. Nothing
// of it is built.
module fountainai-2fa/tests/tools/cert-manager

go 1.26.0

require github.com/cert-manager/cert-manager v1.21.2
