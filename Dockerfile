# Builds the images of the operator and of the sidecar. `make images` builds both; by hand:
#   docker build --target operator --tag fountainai/twofactor-operator:0.2.0 .
#   docker build --target sidecar  --tag fountainai/twofactor-sidecar:0.2.0 .
# No instruction needs BuildKit, so podman and buildah build it too (older buildah needs
# --build-arg BINARIES=build).
#
# BINARIES and BASE choose the programs and the base. By default, this file compiles the programs.
# `images/build` can instead put programs that cargo built on the host, and the libraries that they
# need, into images/host, and build with BINARIES=host-binaries and BASE=host-base. That needs no
# registry and runs no program in a container.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BINARIES=build
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

# ---- Programs, compiled here with the same C library as the base (Debian 12).
FROM ${RUST_IMAGE} AS build
WORKDIR /build
# Dependencies first, with empty crates of the project, so that a changed line rebuilds only ours.
COPY Cargo.toml Cargo.lock ./
COPY api/Cargo.toml api/
COPY core/Cargo.toml core/
COPY operator/Cargo.toml operator/
COPY server/Cargo.toml server/
COPY sidecar/Cargo.toml sidecar/
COPY store/Cargo.toml store/
COPY tests/Cargo.toml tests/
RUN for manifest in */Cargo.toml; do \
      source="${manifest%/Cargo.toml}/src"; \
      mkdir "$source" && touch "$source/lib.rs" && echo 'fn main() {}' > "$source/main.rs"; \
    done \
    && cargo build --release --locked --package twofactor-operator --package twofactor-sidecar \
    && rm -rf */src
COPY api/src api/src
COPY core/src core/src
COPY operator/src operator/src
COPY server/src server/src
COPY sidecar/src sidecar/src
COPY store/src store/src
# Cargo needs every member of the workspace, but builds nothing of this one.
RUN mkdir tests/src && touch tests/src/lib.rs \
    # Cargo compares times, and the checkout may be older than the empty crates.
    && find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package twofactor-operator --package twofactor-sidecar \
    && mkdir /programs && cp target/release/twofactor-operator target/release/twofactor-sidecar /programs/

# ---- Programs from the host, and a base with the libraries that they are linked with.
FROM scratch AS host-binaries
COPY images/host/programs/ /programs/

FROM scratch AS host-base
COPY images/host/base/ /

FROM ${BINARIES} AS binaries

# ---- The operator
FROM ${BASE} AS operator
ARG VERSION=0.2.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="FountainAI two-factor operator" \
      org.opencontainers.image.description="Turns TwoFactorUser resources into Secrets with seeds and publishes them to sidecars" \
      org.opencontainers.image.vendor="FountainAI" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=binaries /programs/twofactor-operator /usr/local/bin/twofactor-operator
# Numeric, so that Kubernetes can verify that it is not root. Any other user works as well.
USER 65532:65532
# 9443 is the webhook, 18005 health and metrics.
EXPOSE 9443 18005
ENTRYPOINT ["/usr/local/bin/twofactor-operator"]

# ---- The sidecar
FROM ${BASE} AS sidecar
ARG VERSION=0.2.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="FountainAI two-factor sidecar" \
      org.opencontainers.image.description="Answers /auth/generate and /auth/verify on localhost for the service beside it" \
      org.opencontainers.image.vendor="FountainAI" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=binaries /programs/twofactor-sidecar /usr/local/bin/twofactor-sidecar
USER 65532:65532
# Health and metrics. Not 8004, because the API listens on loopback for the pod's own containers.
EXPOSE 18004
ENTRYPOINT ["/usr/local/bin/twofactor-sidecar"]
