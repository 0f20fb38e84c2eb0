"""The benchmark suite: what is measured is data (`peers`, `scenarios`, `targets`).

`servers` starts a peer, `measures` says how it is measured, `turns` interleaves them,
`results` keeps what came out, and `tables` and `plots` show it.

Nothing here is imported from outside the standard library, but matplotlib by `plots`.
"""
