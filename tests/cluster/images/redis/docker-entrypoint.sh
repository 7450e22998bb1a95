#!/bin/sh
set -e
# As in the official image, options or a configuration file alone are passed to redis-server.
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
  set -- redis-server "$@"
fi
exec "$@"
