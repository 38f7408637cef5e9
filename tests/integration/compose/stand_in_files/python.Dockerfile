# Offers what python:3.11-slim-bookworm offers, of Debian's own packages: Debian 12's python3 is 3.11.
ARG DEBIAN
FROM ${DEBIAN}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    ca-certificates python3 python3-pip python3-venv >/dev/null 2>&1 \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && ln -s /usr/bin/pip3 /usr/local/bin/pip
CMD ["python"]
