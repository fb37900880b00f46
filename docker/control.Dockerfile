# The control plane: SDK, `farm` command, dispatcher. No torch, no worker.
#   docker build -f docker/control.Dockerfile --build-arg BASE=docker.io/library/debian:12-slim@sha256:… -t inpaint-farm/control .
# BASE is Debian 12 in any packaging. A release names it by digest (docker/README.md); the tag is for trials.
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
# The base's digest is the pin; of the day's packages we want those with the security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY docker/requirements/build.txt docker/requirements/control.txt /locks/
# The tools stay in /build. What is installed into /opt/farm is exactly what the lock names, wheel by wheel.
RUN python3 -m venv /build \
 && /build/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes -r /locks/build.txt \
 && python3 -m venv --without-pip /opt/farm \
 && /build/bin/pip --python /opt/farm/bin/python install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: --require-hashes -r /locks/control.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY farm farm
COPY producer producer
RUN /build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /build/bin/pip --python /opt/farm/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl \
 && rm /opt/farm/bin/farm-worker

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && groupadd --gid 10001 farm \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin farm
COPY --from=build /opt/farm /opt/farm
# What is in the image, as CycloneDX: Python packages and Debian's.
RUN --mount=type=bind,source=docker/sbom.py,target=/sbom.py \
    mkdir -p /usr/share/sbom && /opt/farm/bin/python /sbom.py inpaint-farm-control > /usr/share/sbom/inpaint-farm.cdx.json
# The root may be read-only: /tmp is all that is ever written to.
ENV PATH=/opt/farm/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:%s/healthz' % os.environ.get('FARM_METRICS_PORT', '9090'), timeout=4)"]
ENTRYPOINT ["farm"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG BASE
LABEL org.opencontainers.image.title="Inpaint Farm, control plane" \
      org.opencontainers.image.description="SDK, farm command and dispatcher of Inpaint Farm; no torch" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
