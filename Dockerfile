# One image per target: collector, dashboard, trainer. Needs no BuildKit.
#
#     docker build --target collector -t stabilizer-collector .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# What all images share: an interpreter and a user who owns nothing but the folder of its state.
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/stabilizer/bin:$PATH \
    HOME=/var/lib/stabilizer \
    PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 stabilizer \
 && useradd --uid 10001 --gid stabilizer --home-dir "$HOME" --shell /usr/sbin/nologin stabilizer \
 && install --directory --owner=stabilizer --group=stabilizer "$HOME" /var/spool/stabilizer
WORKDIR /var/lib/stabilizer


# Where packages are installed; nothing of it stays in an image but what is copied out of it.
FROM base AS packages
# Where pip looks, for networks with an index or certificates of their own; empty is pip's default.
# They reach no image, yet stand in the history of this stage: no passwords in them.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_INDEX_URL=$PIP_INDEX_URL \
    PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL \
    PIP_FIND_LINKS=$PIP_FIND_LINKS \
    PIP_CERT=$PIP_CERT \
    PIP_CONSTRAINT=/source/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/stabilizer
COPY constraints.txt pyproject.toml ./
# An empty package: what it depends on is installed again only when these two files change.
RUN mkdir stabilizer && echo '__version__ = "0"' > stabilizer/__init__.py && touch README.md LICENSE


FROM packages AS wheel
COPY README.md LICENSE ./
COPY alembic alembic
COPY stabilizer stabilizer
COPY trainer trainer
COPY dashboard dashboard
RUN pip wheel --no-deps --wheel-dir /wheel .


FROM packages AS collector-packages
RUN pip --python /opt/stabilizer install '.[collector]'

FROM base AS collector
COPY --from=collector-packages /opt/stabilizer /opt/stabilizer
COPY --from=wheel /wheel /tmp/wheel
RUN pip --python /opt/stabilizer install --no-cache-dir --no-deps --force-reinstall /tmp/wheel/*
USER stabilizer
ENV STABILIZER_HOST=0.0.0.0 \
    STABILIZER_PORT=8000
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os\n\
peer = http.client.HTTPConnection('127.0.0.1', int(os.environ['STABILIZER_PORT']), timeout=4)\n\
peer.request('GET', '/readyz')\n\
raise SystemExit(peer.getresponse().status != 200)"]
CMD ["stabilizer", "serve"]


FROM packages AS dashboard-packages
RUN pip --python /opt/stabilizer install '.[dashboard]'

FROM base AS dashboard
COPY --from=dashboard-packages /opt/stabilizer /opt/stabilizer
COPY --from=wheel /wheel /tmp/wheel
RUN pip --python /opt/stabilizer install --no-cache-dir --no-deps --force-reinstall /tmp/wheel/*
USER stabilizer
ENV DASHBOARD_HOST=0.0.0.0 \
    DASHBOARD_PORT=8050
EXPOSE 8050
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os\n\
peer = http.client.HTTPConnection('127.0.0.1', int(os.environ['DASHBOARD_PORT']), timeout=4)\n\
peer.request('GET', '/healthz')\n\
raise SystemExit(peer.getresponse().status != 200)"]
CMD ["python", "-m", "dashboard"]


FROM packages AS trainer-packages
# torch's own tests and the headers for extensions in C++: nothing here compiles any.
RUN pip --python /opt/stabilizer install '.[trainer]' \
 && rm -r /opt/stabilizer/lib/python3.11/site-packages/torch/test \
          /opt/stabilizer/lib/python3.11/site-packages/torch/include

FROM base AS trainer
COPY --from=trainer-packages /opt/stabilizer /opt/stabilizer
COPY --from=wheel /wheel /tmp/wheel
RUN pip --python /opt/stabilizer install --no-cache-dir --no-deps --force-reinstall /tmp/wheel/*
COPY trainer/presets/*.policy.yaml /etc/stabilizer/
USER stabilizer
ENV OMP_NUM_THREADS=1 \
    STABILIZER_SPOOL_DIRECTORY=/var/spool/stabilizer
STOPSIGNAL SIGTERM
# A job that trains tells its health to the collector.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "trainer"]
CMD ["--help"]
