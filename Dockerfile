# The images of the operator and of the sidecar. `images/build` (make images) builds both; by hand it is
#   docker build --target operator --tag fountainai/twofactor-operator:0.1.0 .
#   docker build --target sidecar  --tag fountainai/twofactor-sidecar:0.1.0 .
# No instruction needs BuildKit: podman and buildah build the same (older buildah wants --build-arg BINARIES=build).
#
# BINARIES and BASE say where programs and base come from. The defaults build in here. `images/build` can also fill a
# folder images/host with programs that cargo built on the host and with the libraries that these need, and then builds
# with BINARIES=host-binaries and BASE=host-base: that needs no registry and runs no program in a container.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BINARIES=build
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

# ---- Programs, built in here. Its C library is the base's: Debian 12's.
FROM ${RUST_IMAGE} AS build
WORKDIR /build
# Dependencies first, with empty crates of our own, so that a changed line of code does not build all of them again.
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
# A member of the workspace has to be there, and nothing of it is built.
RUN mkdir tests/src && touch tests/src/lib.rs \
    # Cargo compares times, and a checkout may be older than the empty crates were.
    && find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package twofactor-operator --package twofactor-sidecar \
    && mkdir /programs && cp target/release/twofactor-operator target/release/twofactor-sidecar /programs/

# ---- Programs of the host, and a base of the libraries that they are linked with.
FROM scratch AS host-binaries
COPY images/host/programs/ /programs/

FROM scratch AS host-base
COPY images/host/base/ /

FROM ${BINARIES} AS binaries

# ---- The operator
FROM ${BASE} AS operator
ARG VERSION=0.1.0
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
# Numeric, or Kubernetes cannot tell that it is not root. Any other user that is not root will do as well.
USER 65532:65532
# The webhook; health and metrics.
EXPOSE 9443 18005
ENTRYPOINT ["/usr/local/bin/twofactor-operator"]

# ---- The sidecar
FROM ${BASE} AS sidecar
ARG VERSION=0.1.0
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
# Health and metrics. Not 8004: the API is for the pod's own containers, on loopback.
EXPOSE 18004
ENTRYPOINT ["/usr/local/bin/twofactor-sidecar"]
