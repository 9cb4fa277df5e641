#!/bin/sh
# Debian packages into an image, and nothing with them: apt.sh NAME=SERIES...
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
	/usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/* \
	/usr/lib/python3*/lib2to3 /usr/lib/python3*/pydoc_data
find /usr -name __pycache__ -prune -exec rm -rf {} +
