# An interpreter that trusts whom this machine trusts: its way out may have a certificate of its own.
ARG PYTHON
FROM ${PYTHON}
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
