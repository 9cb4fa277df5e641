#!/usr/bin/env bash
# Builds the images of deploy/Dockerfile here: buildah without a daemon, on a base that debootstrap makes, with the
# Debian and Python mirrors that this machine is configured for, of which nothing enters an image. Debian 12, root.
# What is made stays in a cache outside the checkout, by content: what has not changed is not built again.
#
#   build-image.sh                  build all three, print service, size and folder of each root file system
#   build-image.sh --archive DIR    the same, and DIR/yett-SERVICE.tar for `kind load image-archive` or `docker load`
#   build-image.sh --find           never build: print the folder of the roots, or say what is missing and exit 1
set -euo pipefail

SERVICES="controller nodeagent dnsrecorder"
RECIPE=1   # raised when something else than the files below changes what is built
ROOTS_MAX=4   # 0.8 GB each
IMAGES_MAX=200
CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/yett/image"
BASE="$CACHE/base-bookworm-$RECIPE"
PIP="$CHECKOUT/.venv/bin/pip"
INPUTS="requirements.txt schemas services/__init__.py services/common services/controller services/nodeagent
	services/dnsrecorder bpf deploy/Dockerfile deploy/Dockerfile.dockerignore deploy/image"

say() { echo "image: $*" >&2; }

version() { sed -n 's/^version = "\(.*\)"/\1/p' "$CHECKOUT/pyproject.toml"; }

key() {  # of all that goes into the images
	(cd "$CHECKOUT" && echo "$RECIPE $(version)" && find $INPUTS -type f -not -path '*/__pycache__/*' -print0 |
		sort -z | xargs -0 sha256sum) | sha256sum | cut -c1-16
}

debian() {  # "URI codename component" of the Debian archives that apt uses here
	apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $3 ~ /^bookworm/ { print $2, $3, $4 }' | sort -u
}

install_missing() {
	local missing
	missing=$(for p in buildah debootstrap; do
		dpkg-query -W -f='${db:Status-Status}' $p 2>/dev/null | grep -qx installed || echo $p; done)
	[ -n "$missing" ] || return 0
	say "apt-get install" $missing
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends \
		$missing >/dev/null
}

make_base() {  # Debian bookworm, without what debian:12-slim lacks too, and without a word of where it came from
	[ ! -d "$BASE" ] || return 0
	local mirror new="$BASE.new"
	mirror=$(debian | awk '$2 == "bookworm" { print $1; exit }')
	[ -n "$mirror" ] || { say "apt knows no Debian bookworm here"; exit 1; }
	say "debootstrap, once"
	rm -rf "$new"
	debootstrap --variant=minbase --include=ca-certificates bookworm "$new" "$mirror" >"$CACHE/debootstrap.log" 2>&1 ||
		{ tail -5 "$CACHE/debootstrap.log" >&2; exit 1; }
	rm -rf "$new"/var/lib/apt/lists/* "$new"/var/cache/apt/* "$new"/var/log/* "$new"/usr/share/{doc,man,info,locale}/*
	: >"$new/etc/apt/sources.list"
	printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\n%s\n' \
		'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >"$new/etc/apt/sources.list.d/debian.sources"
	mv "$new" "$BASE"
}

find_driver() {  # overlay where this file system can, else copies of everything
	local try
	try=$(mktemp -d "$CACHE/overlay.XXXXXX")
	mkdir "$try"/{lower,upper,work,merged}
	if mount -t overlay overlay -o "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" "$try/merged" 2>/dev/null; then
		umount "$try/merged"; echo overlay
	else
		echo vfs
	fi
	rm -rf "$try"
}

tool() { buildah --root "$CACHE/storage-$DRIVER" --runroot "$CACHE/run-$DRIVER" --storage-driver "$DRIVER" "$@"; }

import_base() {
	! tool inspect --type image yett-base >/dev/null 2>&1 || return 0
	local container
	container=$(tool from scratch)
	tool add --quiet "$container" "$BASE" / >/dev/null
	tool config --cmd bash "$container"
	tool commit --quiet --rm "$container" yett-base >/dev/null
}

fetch() {  # the wheels that are not here yet, by hash, into $CACHE/wheels; apt's sources of this machine into $1
	local service from
	mkdir -p "$CACHE/wheels"
	for service in $SERVICES; do
		python3 "$CHECKOUT/deploy/image/distributions.py" $service >"$1/$service.in"
		for from in "--no-index" ""; do
			"$PIP" download --quiet --disable-pip-version-check --no-deps --require-hashes --no-build-isolation $from \
				--find-links "$CACHE/wheels" --dest "$CACHE/wheels" -r "$1/$service.in" 2>"$1/$service.log" && continue 2
		done
		tail -5 "$1/$service.log" >&2; exit 1
	done
	debian | while read -r uri codename component; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $codename $component"
	done >"$1/apt/build.list"
}

build() {  # into $CACHE/roots/KEY
	local work out service container roots="$CACHE/roots/$1"
	work=$(mktemp -d "$CACHE/work.XXXXXX")
	trap "rm -rf '$work'" EXIT
	mkdir -p "$work/apt" "$work/roots"
	fetch "$work"
	for service in $SERVICES; do
		# A registry is never asked: what is named is here.
		tool build --quiet --layers --isolation chroot --pull-never --format oci -f "$CHECKOUT/deploy/Dockerfile" \
			--ignorefile "$CHECKOUT/deploy/Dockerfile.dockerignore" --target $service --tag "yett-$service:$(version)" --tag "yett-$service:$1" \
			--build-arg BASE=localhost/yett-base --build-arg "VERSION=$(version)" \
			--build-arg "PIP_OPTIONS=--no-index --find-links /mnt" \
			--volume "$CACHE/wheels:/mnt:ro" --volume "$work/apt:/etc/apt/sources.list.d:ro" \
			"$CHECKOUT" >"$work/$service.log" 2>&1 || { tail -20 "$work/$service.log" >&2; say "$service failed"; exit 1; }
		container=$(tool from --pull-never "yett-$service:$1")
		cp -a "$(tool mount "$container")" "$work/roots/$service"
		tool inspect --type image "yett-$service:$1" >"$work/roots/$service.json"
		tool rm "$container" >/dev/null
	done
	mkdir -p "$CACHE/roots"
	rm -rf "$roots"
	mv "$work/roots" "$roots"
	forget
}

forget() {  # what is old; layers of former builds are what makes the next one quick
	local name
	ls -dt "$CACHE"/roots/* | tail -n +$((ROOTS_MAX + 1)) | xargs -r rm -rf
	tool images --format '{{.Name}}:{{.Tag}}' | grep '^localhost/yett-[a-z]*:[0-9a-f]\{16\}$' | while read -r name; do
		[ -d "$CACHE/roots/${name##*:}" ] || tool rmi "$name" >/dev/null
	done
	[ "$(tool images --all --quiet | wc -l)" -lt $IMAGES_MAX ] || tool rmi --prune >/dev/null 2>&1 || true
}

is_built() {
	local service
	[ -d "$ROOTS" ] || return 1
	[ "${1:-}" = --archive ] || return 0
	for service in $SERVICES; do tool inspect --type image "yett-$service:$KEY" >/dev/null 2>&1 || return 1; done
}

KEY=$(key)
ROOTS="$CACHE/roots/$KEY"
if [ "${1:-}" = --find ]; then
	[ -d "$ROOTS" ] || { say "no image of this checkout in $CACHE: make image"; exit 1; }
	echo "$ROOTS"; exit 0
fi
[ "$(id -u)" = 0 ] || { say "buildah's chroot isolation needs root"; exit 1; }
[ -x "$PIP" ] || { say "no $PIP: make setup"; exit 1; }
mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"; flock 9   # two checkouts share one cache
DRIVER=${STORAGE_DRIVER:-$(find_driver)}
if ! is_built "${1:-}"; then
	install_missing
	make_base
	import_base
	started=$SECONDS
	build "$KEY"
	say "built in $((SECONDS - started)) s"
fi
touch "$ROOTS"
for service in $SERVICES; do  # the last word of each line is what tests take
	printf '%-12s %4s MB  %s\n' $service "$(du -sm "$ROOTS/$service" | cut -f1)" "$ROOTS/$service"
	if [ "${1:-}" = --archive ]; then
		mkdir -p "${2:?--archive DIR}"
		rm -f "$2/yett-$service.tar"
		tool push --quiet "yett-$service:$KEY" "docker-archive:$2/yett-$service.tar:yett-$service:$(version)" >/dev/null
	fi
done
