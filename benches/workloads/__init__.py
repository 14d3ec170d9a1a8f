# SPDX-License-Identifier: MIT OR Apache-2.0
"""The workloads, by table. A workload takes the environment and a list that it adds its rows to."""
