#!/usr/bin/env bash
# Prints the folder that holds kube-apiserver, kube-controller-manager and etcd: KUBEBUILDER_ASSETS if it is set, else
# a cache outside the checkout, which is filled once. No package carries the server; Debian bookworm's source package
# of Kubernetes does. On two idle cores the build takes about 265 s (11 minutes where others load them), 34 MB of download, 1.3 GB of memory, 2.4 GB of disk
# while it runs and 200 MB afterwards.
#
#   assets.sh           build if need be (root, for apt), print the folder
#   assets.sh --find    never build: print the folder, or say what is missing and exit 1
set -euo pipefail

VERSION=1.20.2
SOURCE_VERSION=1.20.5+really1.20.2-1.1+deb12u1
RECIPE=1   # raised when what is built from one version changes
BUILD_PACKAGES="golang-1.19-go golang-github-modern-go-reflect2-dev rsync jq make patch xz-utils dpkg-dev"
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/yett/kubernetes-$VERSION-$RECIPE"
SERVERS="kube-apiserver kube-controller-manager"

say() { echo "kube: $*" >&2; }

lacking() {  # the first server that the folder $1 lacks
	for each in $SERVERS etcd; do [ -x "$1/$each" ] || { echo "$each"; return; }; done
}

install_missing() {
	local missing
	missing=$(for p in "$@"; do
		dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || echo "$p"; done)
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || { say "not root, so these packages stay missing:" $missing; exit 1; }
	say "apt-get install" $missing
	# Debian starts etcd when it is installed; ours is started by the tests, on ports of its own.
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' RETURN
		printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy
	fi
	DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $missing >/dev/null
}

fetch_source() {  # into $1; the machine's own apt files stay as they are
	local mirror apt
	mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
		awk '$1 == "Debian" && $3 == "bookworm" { print $2; exit }')
	[ -n "$mirror" ] || { say "apt knows no Debian bookworm here: set KUBEBUILDER_ASSETS"; exit 1; }
	mkdir -p "$1/lists/partial"
	echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >"$1/sources.list"
	apt=(apt-get -qq -o "Dir::Etc::sourcelist=$1/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$1/lists" -o APT::Sandbox::User=root)
	"${apt[@]}" update >&2
	(cd "$1" && "${apt[@]}" source "kubernetes=$SOURCE_VERSION" >&2)
}

build() {  # the servers into $CACHE
	local work tree
	work=$(mktemp -d "$CACHE.build.XXXXXX")
	trap "rm -rf '$work'" EXIT
	fetch_source "$work"
	tree=$(find "$work" -mindepth 1 -maxdepth 1 -type d -name 'kubernetes-*')
	# With the vendored 1.0.1 and a Go of today the server dies on the first custom resource.
	local reflect2=vendor/github.com/modern-go/reflect2
	rm -f "$tree/$reflect2"/*.go "$tree/$reflect2"/*.s
	cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$tree/$reflect2/"
	rm -f "$tree/$reflect2"/*_test.go
	mkdir -p "$tree/.go/src/k8s.io"
	ln -s "$tree" "$tree/.go/src/k8s.io/kubernetes"
	(cd "$tree/.go/src/k8s.io/kubernetes" &&
		env PATH="/usr/lib/go-1.19/bin:$PATH" GOPATH="$tree/.go" GOCACHE="$work/gocache" GOPROXY=off CGO_ENABLED=0 \
			GOFLAGS=-p=2 KUBE_GIT_VERSION="v$VERSION" KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 KUBE_GIT_TREE_STATE=clean \
			KUBE_GIT_COMMIT=debian nice -n 10 make WHAT="$(printf 'cmd/%s ' $SERVERS)") >"$work/build.log" 2>&1 ||
		{ tail -40 "$work/build.log" >&2; say "the build failed"; exit 1; }
	for each in $SERVERS; do
		install -m 755 "$(readlink -f "$tree/_output/local/go/bin/$each")" "$CACHE/.$each"
		mv "$CACHE/.$each" "$CACHE/$each"
	done
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	missing=$(lacking "$KUBEBUILDER_ASSETS")
	# kubebuilder's own folder has no controller manager.
	[ -z "$missing" ] || [ "$missing" = kube-controller-manager ] ||
		{ say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no $missing"; exit 1; }
	echo "$KUBEBUILDER_ASSETS"; exit 0
fi
if [ "${1:-}" = --find ]; then
	missing=$(lacking "$CACHE")
	[ -z "$missing" ] || { say "no $missing in $CACHE: make kube-assets"; exit 1; }
	echo "$CACHE"; exit 0
fi
mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"; flock 9   # two checkouts share one build
if [ -n "$(lacking "$CACHE")" ]; then
	install_missing etcd-server
	ln -sf "$(command -v etcd)" "$CACHE/etcd"
	if [ -n "$(lacking "$CACHE")" ]; then
		install_missing $BUILD_PACKAGES
		started=$SECONDS
		say "building Kubernetes $VERSION once, into $CACHE"
		build
		say "built in $((SECONDS - started)) s"
	fi
fi
echo "$CACHE"
