"""Kernels and launchers over score matrices `a @ b.T` that are never stored as a whole, shared by the losses.

- tiles.py: tile shapes, and the device functions that compute a tile and walk the matrix.
- blocks.py: shapes of the blocks of tiles that one launch covers.
- partial_sums.py: the workspace for sums of tiles over rows and columns, and the kernel that folds it.
- logsumexp.py: log-sum-exps of rows or columns, by tiles and folding.
- gradient_products.py: from gradients of scores, block by block, to gradients of `a` and `b`.
- float32_product.py: matrix product of float32 by TF32x3.
"""
