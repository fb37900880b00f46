# A real S3 server for compose.yaml: Ceph's gateway with one monitor and one disk in memory. For trials: it forgets.
# It is the server that the farm's own tests run against, and it honours create-once (`If-None-Match: *`).
ARG BASE=docker.io/library/debian:12-slim
FROM ${BASE}
# The base's digest is the pin; of the day's packages we want those with the security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ceph-common ceph-mon ceph-osd curl radosgw \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 farm \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin farm
COPY --chmod=755 docker/s3/serve.sh /usr/local/bin/serve-s3
ENV S3_FOLDER=/tmp/ceph S3_PORT=9000 S3_BUCKET=farm
USER 10001:10001
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["test", "-e", "/tmp/ceph/ready"]
ENTRYPOINT ["serve-s3"]
LABEL org.opencontainers.image.title="Inpaint Farm, S3 server for trials" \
      org.opencontainers.image.licenses="Apache-2.0"
