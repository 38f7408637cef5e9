# Like the official image's: as root it hands the data over and becomes postgres; with an empty
# data folder it makes the database of POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB first.
set -eu

if [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /run/postgresql
  chown -R postgres:postgres "$PGDATA" /run/postgresql
  chmod 700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups sh "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  : "${POSTGRES_PASSWORD:?must be set}"
  user="${POSTGRES_USER:-postgres}"
  password_file="$(mktemp)"
  printf '%s\n' "$POSTGRES_PASSWORD" > "$password_file"
  initdb --username="$user" --pwfile="$password_file" --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8
  rm "$password_file"
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
  # Without TCP, so that nobody takes the unfinished database for the finished one.
  pg_ctl -w -o "-c listen_addresses=''" start
  createdb --username="$user" "${POSTGRES_DB:-$user}" || [ "${POSTGRES_DB:-$user}" = postgres ]
  pg_ctl -w -m fast stop
fi

exec "$@" -c "listen_addresses=*"
