// Package thirdparty opens test vectors that nobody of this project wrote with
// package envelope/aead: Wycheproof's aes_gcm and NIST CAVP's gcmDecrypt256. It is
// a module of its own because Wycheproof is 109 MB.
//
// CAVP comes in a wheel of PyPI (pip download --no-deps cryptography-vectors);
// MATTER_CAVP_WHEEL names it. Without it that test is skipped, or fails if CI=true
// or MATTER_REQUIRE_LOCAL=1.
package thirdparty
