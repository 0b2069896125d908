# adaptk from Julia: ADAPTK_LIBRARY=$(python -m adaptk info --pkgconfig-dir)/../libadaptk.so.0 julia train.jl
const library = ENV["ADAPTK_LIBRARY"]

struct Device
    device_type::Cint
    device_id::Int32
end

struct DType
    code::UInt8
    bits::UInt8
    lanes::UInt16
end

# DLPack's.
struct Tensor
    data::Ptr{Cvoid}
    device::Device
    ndim::Int32
    dtype::DType
    shape::Ptr{Int64}
    strides::Ptr{Int64}
    byte_offset::UInt64
end

struct Hyper
    name::Cstring
    value::Float64
end

checked(status) = status == 0 || error(unsafe_string(ccall((:adaptk_last_error, library), Cstring, ())))

# A step of dense arrays; each state has the shape of its parameter. Axes may have any order, so the strides of a
# column-major array say all.
function step!(rule, p, g, states; step, hypers...)
    shape, order = collect(Int64, size(p)), collect(Int64, strides(p))
    names = String[string(name) for name in keys(hypers)]
    arrays = (p, g, states...)
    GC.@preserve arrays shape order names begin
        dtype = DType(2, 8 * sizeof(eltype(p)), 1)
        describe(x) = Tensor(pointer(x), Device(1, 0), ndims(x), dtype, pointer(shape), pointer(order), 0)
        tensors = [describe(x) for x in arrays]
        given = [Hyper(Cstring(pointer(name)), value) for (name, value) in zip(names, values(values(hypers)))]
        GC.@preserve tensors begin
            at = [pointer(tensors, i) for i in eachindex(tensors)]
            GC.@preserve at given begin
                checked(ccall((:adaptk_step, library), Cint,
                    (Cstring, Ptr{Hyper}, Csize_t, Int64, Csize_t, Ptr{Ptr{Tensor}}, Ptr{Ptr{Tensor}}, Ptr{Ptr{Tensor}},
                     Ptr{Cvoid}, Ptr{Cvoid}),
                    rule, given, length(given), step, 1, pointer(at, 1), pointer(at, 2), pointer(at, 3), C_NULL, C_NULL))
            end
        end
    end
    return p
end

# Least squares: a matrix that is known again.
target = Float32[1 2 3; -4 5 -6]
weights, m, v = zero(target), zero(target), zero(target)
for t in 1:2000
    step!("adam", weights, weights - target, (m, v); step=t, lr=0.2 / sqrt(t))
end
println(maximum(abs, weights - target) < 1e-2 ? "found" : error("not found: $weights"))
