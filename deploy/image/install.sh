#!/bin/sh
# Fills /out with what one service's image has in /opt/yett: install.sh packages|code SERVICE
set -eu
cd /src
case $1 in
packages)
	python3 deploy/image/distributions.py "$2" >/tmp/pinned.txt
	# A distribution without a wheel is built by the setuptools that is here.
	pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --no-build-isolation \
		--no-compile --root-user-action ignore --target /out/site $PIP_OPTIONS -r /tmp/pinned.txt
	cd /out/site
	rm -rf bin kubernetes_asyncio/test
	find . -depth \( -name tests -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' \) -exec rm -rf {} +
	;;
code)
	mkdir -p /out/services
	cp services/__init__.py /out/services/
	cp -r schemas /out/
	cp -r services/common "services/$2" /out/services/
	[ "$2" != nodeagent ] || cp -r bpf /out/
	;;
esac
# Nothing can be compiled later: the root file system is read-only.
python3 -m compileall -q -s /out -p /opt/yett --invalidation-mode unchecked-hash /out >/dev/null
